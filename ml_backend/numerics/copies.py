"""Which images are the same one: copies of a file, or the same picture saved again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ml_backend.domain.generation import Array, Floats

SAME = 1e-5
"""Cosine distance that is rounding: the same features."""
NEAR = 0.01
"""Cosine distance up to which two pictures are the same one, saved again or scaled. The nearest two of 700
different images of MNIST are 0.019 apart, of scikit-learn's digits 0.045 (EfficientNet-Lite0)."""
PART = 25
"""And a 25th of what is usual among images of one kind, which a tuned network draws together."""
MOST = 0.05
"""Part of the images that may be one group at most: more are no copies, but what these images are like."""
LARGEST = 20_000
"""Of more images only copies of one file are found: comparing all with all takes half a minute."""
BLOCK = 1024


def groups_of(vectors: Floats, kinds: Array) -> npt.NDArray[np.int64]:
    """Return the first row (n,) that shows the same image as each row; unit vectors, and their kinds (n,).

    What is held out of a training must not be taught by a copy of itself.
    """
    n = len(vectors)
    if n > LARGEST:
        _, first, own = np.unique(vectors.astype(np.float16), axis=0, return_index=True, return_inverse=True)
        return np.asarray(first[own.reshape(-1)], np.int64)
    same = _joined(vectors, SAME)
    usual = _usual(vectors, kinds, same)
    if usual is None:
        return same
    near = _joined(vectors, min(NEAR, usual / PART))
    sizes, exact = np.bincount(near, minlength=n), np.bincount(same, minlength=n)
    return near if sizes.max(initial=0) <= max(exact.max(initial=0), MOST * n) else same


def _usual(vectors: Floats, kinds: Array, same: Array) -> float | None:
    """The median distance of two different images of a kind."""
    order = np.lexsort((np.random.default_rng(0).permutation(len(kinds)), kinds))
    one, other = order[:-1], order[1:]
    pairs = (kinds[one] == kinds[other]) & (same[one] != same[other])
    if not pairs.any():
        return None
    cosines = np.einsum("nd,nd->n", vectors[one[pairs]], vectors[other[pairs]])
    return float(np.median(1 - cosines))


def _joined(vectors: Floats, distance: float) -> npt.NDArray[np.int64]:
    """The first row of the group of each row, groups being chains of rows at most this far apart."""
    from scipy.sparse import coo_array  # workers have it; connect and demo must start without
    from scipy.sparse.csgraph import connected_components

    n = len(vectors)
    pairs: list[Array] = [np.empty((2, 0), np.int64)]
    for start in range(0, n, BLOCK):
        close = vectors[start : start + BLOCK] @ vectors[start:].T >= 1 - distance
        one, other = np.nonzero(close)
        pairs.append(np.stack([one, other]).astype(np.int64)[:, one < other] + start)
    one, other = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(n, n))
    own = connected_components(graph, directed=False)[1]
    first = np.unique(own, return_index=True)[1]
    return np.asarray(first[own], np.int64)
