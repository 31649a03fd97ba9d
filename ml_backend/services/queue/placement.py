"""Where images stand on the map: the region and the typicality of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ml_backend.domain.generation import Array, Floats, Projection
from ml_backend.domain.model import ContentKey


class Placement:
    """Clusters and densities of a projection, by content key; nearest centroid for keys it has not seen."""

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        self.position = {str(key): n for n, key in enumerate(projection.keys)}

    def of(self, keys: Sequence[ContentKey], raw: Floats) -> tuple[Array, Array]:
        """(clusters, densities) of these images."""
        projection = self.projection
        at = np.array([self.position.get(key, -1) for key in keys])
        clusters = np.zeros(len(keys), np.int32)
        if len(projection.centroids):
            clusters = np.argmax(raw @ projection.centroids.T, axis=1).astype(np.int32)
        density = np.full(len(keys), float(np.median(projection.density)) if len(at) else 0.0, np.float32)
        seen = at >= 0
        clusters[seen], density[seen] = projection.cluster[at[seen]], projection.density[at[seen]]
        return clusters, density
