"""Maps by UMAP, started from PCA or from the last map, so that they are quick and stay where they were."""

from __future__ import annotations

import warnings

import numpy as np

from ml_backend.domain.generation import Array, Floats, normalise
from ml_backend.numerics.exact_knn import nearest

NEIGHBOURS = 15
FIRST_EPOCHS, NEXT_EPOCHS = 200, 100
FIRST_RATE, NEXT_RATE = 1.0, 0.3
"""An old map is refined in smaller steps: it moves less, as true to its neighbourhoods as a new one."""
LEAST = 16
LANDMARKS = 20_000
"""Of more images than this an even sample is laid out, and the others go between their neighbours in it."""


class UmapProjector:
    """``ports.Projector``: exact neighbours, 200 epochs for a first map and 100 from an old one.

    Fewer than 16 distinct images are laid out by PCA. Two runs over the same images differ a little: both
    cores write to the same map.
    """

    def warm(self) -> None:
        """Compile what UMAP compiles at its first use, which takes most of a minute."""
        rows = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
        self.project(rows, self.project(rows))

    def project(self, embeddings: Floats, initial: Array | None = None) -> Floats:
        """(n, d) → (n, 2) scaled to [0, 1]; ``initial`` (n, 2) is the old map, NaN rows are new images."""
        rows = normalise(embeddings)
        old = _old(rows, initial)
        n = len(rows)
        if n < LEAST or len(np.unique(rows, axis=0)) < LEAST:
            return _scaled(_aligned(_pca(rows), old))
        start = _pca(rows) if old is None else _filled(rows, old)
        sample = np.arange(n) if n <= LANDMARKS else np.linspace(0, n - 1, LANDMARKS).astype(np.int64)
        xy = np.full((n, 2), np.nan, np.float32)
        xy[sample] = _umap(rows[sample], start[sample], first=old is None)
        return _scaled(_aligned(_filled(rows, xy), old))


def _umap(rows: Floats, start: Floats, *, first: bool) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # that TensorFlow is missing, which nobody asked for
        from umap.umap_ import find_ab_params, fuzzy_simplicial_set, simplicial_set_embedding

    k = min(NEIGHBOURS, len(rows) - 1)
    indices, cosines = nearest(rows, rows, k, np.arange(len(rows)))
    distances = np.maximum(1.0 - cosines, 0.0).astype(np.float32)
    distances[:, 0] = 0.0
    random = np.random.RandomState(0)
    graph, _, _ = fuzzy_simplicial_set(
        rows, k, random, "cosine", knn_indices=indices.astype(np.int32), knn_dists=distances
    )
    a, b = find_ab_params(1.0, 0.1)
    xy, _ = simplicial_set_embedding(
        rows,
        graph,
        n_components=2,
        initial_alpha=FIRST_RATE if first else NEXT_RATE,
        a=a,
        b=b,
        gamma=1.0,
        negative_sample_rate=5,
        n_epochs=FIRST_EPOCHS if first else NEXT_EPOCHS,
        init=_spread(start, random),
        random_state=random,
        metric="euclidean",
        metric_kwds={},
        densmap=False,
        densmap_kwds={},
        output_dens=False,
        parallel=True,
    )
    return np.asarray(xy, np.float32)


def _spread(start: Floats, random: np.random.RandomState) -> Floats:
    """Ten units wide, as UMAP expects, and no two points in the same place."""
    return (10 * _scaled(start) + random.normal(scale=1e-3, size=start.shape)).astype(np.float32)


def _old(rows: Floats, initial: Array | None) -> Floats | None:
    """The old map as float32; None where it places no image."""
    if initial is None or not len(rows):
        return None
    old = np.array(initial, np.float32)
    old[~np.isfinite(old).all(axis=1)] = np.nan
    return None if np.isnan(old).all() else old


def _filled(rows: Floats, xy: Floats) -> Floats:
    """``xy`` with NaN rows put at the mean of their five nearest placed images, nearer ones counting more."""
    lost = np.isnan(xy[:, 0])
    if not lost.any():
        return xy
    placed = np.flatnonzero(~lost)
    indices, cosines = nearest(rows[lost], rows[placed], 5)
    weights = np.exp((cosines - cosines[:, :1]) / 0.1)[:, :, None]
    out = xy.copy()
    out[lost] = (xy[placed[indices]] * weights).sum(axis=1) / weights.sum(axis=1)
    return out


def _pca(rows: Floats) -> Floats:
    """The first two principal components (n, 2), zeros where there is nothing to tell apart."""
    out = np.zeros((len(rows), 2), np.float32)
    if len(rows) < 2:
        return out
    centred = (rows - rows.mean(axis=0)).astype(np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    used = [n for n in np.argsort(-values)[:2] if values[n] > 1e-9 * len(rows)]
    axes = vectors[:, used]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(len(used))] < 0, -1, 1)
    out[:, : len(used)] = centred @ axes
    return out


def _aligned(xy: Floats, old: Floats | None) -> Floats:
    """Turned and mirrored to lie on the old map (Kabsch 1976), where at least two images were on it."""
    if old is None:
        return xy
    shared = ~np.isnan(old[:, 0])
    if shared.sum() < 2:
        return xy
    ours, theirs = xy - xy[shared].mean(axis=0), old - old[shared].mean(axis=0)
    left, _, right = np.linalg.svd(ours[shared].T.astype(np.float64) @ theirs[shared])
    return (ours @ (left @ right)).astype(np.float32)


def _scaled(xy: Floats) -> Floats:
    """Each axis from 0 to 1; 0.5 on an axis without extent."""
    if not len(xy):
        return np.zeros((0, 2), np.float32)
    low, extent = xy.min(axis=0), np.ptp(xy, axis=0)
    return np.where(extent > 1e-9, (xy - low) / np.where(extent > 1e-9, extent, 1), 0.5).astype(np.float32)
