"""The raw space and the map: PCA of the features, clusters, typicality, and two steady dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ml_backend.domain.generation import Array, Floats, Pca, Projection, normalise
from ml_backend.domain.model import SPACE_DIM
from ml_backend.numerics.exact_knn import nearest
from ml_backend.ports import Projector
from strategies.clusters import centres
from strategies.clusters import nearest as nearest_centre

PCA_ROWS = 20_000
"""More images than this change nothing in 64 components; they are read evenly spread."""
BLOCK = 4096
NEIGHBOURS = 15
DENSITY_ROWS = 20_000
DENSITY_PAIRS = 4_000_000_000
"""Of more than 200,000 images the sample of neighbours gets smaller: 4,000 for a million, half a minute."""
MIN_CLUSTERS, MAX_CLUSTERS = 4, 200


def fit_pca(features: Array) -> Pca:
    """Return the principal components of features (n, F), a memory map of float16 as well.

    Deterministic, signs included: each component's largest weight is positive. Components beyond the
    data's rank are zero.
    """
    n, width = features.shape
    rows = np.linspace(0, n - 1, PCA_ROWS).astype(np.int64) if n > PCA_ROWS else np.arange(n)
    components = np.zeros((SPACE_DIM, width), np.float32)
    if not n:
        return Pca(np.zeros(width, np.float32), components)
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    mean = sum(np.asarray(features[b], np.float32).sum(axis=0, dtype=np.float64) for b in blocks) / len(rows)
    covariance = np.zeros((width, width))
    for block in blocks:
        centred = np.asarray(features[block], np.float32) - mean.astype(np.float32)
        covariance += centred.T @ centred
    values, vectors = np.linalg.eigh(covariance)
    order = np.argsort(-values)[: min(SPACE_DIM, n - 1)]
    order = order[values[order] > max(values.max() * 1e-6, 1e-12)]
    found = vectors[:, order].T
    largest = np.abs(found).argmax(axis=1)
    found *= np.sign(found[np.arange(len(found)), largest])[:, None]
    components[: len(found)] = found
    return Pca(mean.astype(np.float32), components)


def lay_out(
    keys: Sequence[str],
    raw: Floats,
    projector: Projector,
    previous: Projection | None,
    generation: int,
    embeddings: Floats | None = None,
) -> Projection:
    """Return the map of images ``keys`` (n, unique) at ``raw`` (n, SPACE_DIM), as near as can be to the last.

    Points start where ``previous`` had them, and clusters keep their numbers. ``embeddings`` (n, d) are what
    the map shows where that is another space than the raw one, which clusters and densities belong to.
    """
    raw = normalise(raw)
    names = np.array(keys, dtype="U32")
    where = _positions(names, previous)
    initial = None
    if previous is not None and (where >= 0).any():
        initial = np.full((len(names), 2), np.nan, np.float32)
        initial[where >= 0] = previous.xy[where[where >= 0]]
    centroids, cluster = _clusters(raw, _old_centroids(raw, where, previous))
    return Projection(
        generation=generation,
        keys=names,
        xy=projector.project(raw if embeddings is None else embeddings, initial),
        cluster=cluster,
        density=density(raw),
        centroids=centroids,
    )


def density(raw: Floats) -> Floats:
    """Return the mean cosine (n,) of each unit vector to its 15 nearest others: how typical it is.

    Above 20,000 images neighbours are looked for among an even sample.
    """
    n = len(raw)
    if n < 2:
        return np.zeros(n, np.float32)
    sample = np.linspace(0, n - 1, min(n, DENSITY_ROWS, DENSITY_PAIRS // n)).astype(np.int64)
    own = np.full(n, -1)
    own[sample] = np.arange(len(sample))
    _, cosines = nearest(raw, raw[sample], NEIGHBOURS + 1, own)
    cosines = np.where(own[:, None] >= 0, cosines[:, 1:], cosines[:, :-1])
    return np.asarray(np.clip(cosines.mean(axis=1), -1, 1), np.float32)


def _positions(names: Array, previous: Projection | None) -> npt.NDArray[np.int64]:
    """Where each name stands in ``previous``; -1 where it is new."""
    if previous is None:
        return np.full(len(names), -1, np.int64)
    known = {str(key): position for position, key in enumerate(previous.keys)}
    return np.array([known.get(str(name), -1) for name in names], np.int64)


def _old_centroids(raw: Floats, where: npt.NDArray[np.int64], previous: Projection | None) -> Floats | None:
    """The old clusters' centres in today's raw space, which may be another than theirs was."""
    if previous is None or not (where >= 0).any():
        return None
    cluster = previous.cluster[where[where >= 0]]
    sums = np.zeros((len(previous.centroids), raw.shape[1]), np.float32)
    np.add.at(sums, cluster, raw[where >= 0])
    return normalise(np.where(sums.any(axis=1, keepdims=True), sums, previous.centroids))


def _clusters(raw: Floats, old: Floats | None) -> tuple[Floats, npt.NDArray[np.int32]]:
    """Spherical k-means: unit centroids (K, d) and the cluster of each row."""
    n = len(raw)
    if not n:
        return raw.reshape(0, raw.shape[1]), np.zeros(0, np.int32)
    wanted = min(n, int(np.clip(np.sqrt(n / 2), MIN_CLUSTERS, MAX_CLUSTERS)))
    if old is not None and wanted < 1.5 * len(old):
        wanted = len(old)  # new numbers for all clusters only where there are far more images
    centroids = centres(raw, wanted, np.random.default_rng(0), old)
    return centroids, nearest_centre(raw, centroids)[0].astype(np.int32)
