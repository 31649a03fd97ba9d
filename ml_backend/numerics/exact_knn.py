"""Exact nearest neighbours by products of unit vectors, block by block, in plain numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ml_backend.domain.generation import Floats

BLOCK = 1024
GROUP = 64


def nearest(
    queries: Floats, rows: Floats, k: int, own: npt.NDArray[np.int64] | None = None
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return indices (n, k) into ``rows`` and cosines (n, k), nearest first; both sides are unit vectors.

    ``own`` (n,) says which row each query itself is (-1: none): it comes first, as similar as 2, even among
    duplicates. ``k`` is cut to the number of rows.
    """
    k = min(k, len(rows))
    indices = np.empty((len(queries), k), np.int64)
    cosines = np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        similarities = queries[block] @ rows.T
        if own is not None:
            known = np.flatnonzero(own[block] >= 0)
            similarities[known, own[block][known]] = 2.0
        indices[block], cosines[block] = largest(similarities, k)
    return indices, cosines


def largest(values: Floats, k: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return positions (n, k) and values (n, k) of the ``k`` largest of each row, largest first.

    ``k`` is cut to the number of columns. As fast as torch's topk over 10,000 columns.
    """
    k = min(k, values.shape[1])
    if k <= 0:
        return np.empty((len(values), 0), np.int64), np.empty((len(values), 0), np.float32)
    near = np.sort(_positions(values, k), axis=1)  # equal values in the order of their columns
    found = np.take_along_axis(values, near, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(near, order, axis=1), np.take_along_axis(found, order, axis=1)


def _positions(values: Floats, k: int) -> npt.NDArray[np.int64]:
    """Positions of the ``k`` largest values of each row, in any order.

    The k largest lie in the k groups with the largest maxima: to look into those alone takes half the time
    of one argpartition over 10,000 columns, but twice its time over 1,000.
    """
    n, m = values.shape
    groups = m // GROUP
    if groups <= 4 * k:
        return np.argpartition(-values, k - 1, axis=1)[:, :k]
    head = values[:, : groups * GROUP].reshape(n, groups, GROUP)
    best = np.argpartition(-head.max(axis=2), k - 1, axis=1)[:, :k]
    candidates = (best[:, :, None] * GROUP + np.arange(GROUP)).reshape(n, -1)
    tail = np.broadcast_to(np.arange(groups * GROUP, m), (n, m - groups * GROUP))
    candidates = np.concatenate([candidates, tail], axis=1)
    inside = np.argpartition(-np.take_along_axis(values, candidates, axis=1), k - 1, axis=1)[:, :k]
    return np.take_along_axis(candidates, inside, axis=1)
