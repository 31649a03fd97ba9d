"""Suggestions from the labels of neighbours: similarity-weighted votes, in plain numpy."""

from __future__ import annotations

import numpy as np

from ml_backend.domain.generation import Array, Floats
from ml_backend.numerics.exact_knn import nearest

SHARPNESS = 0.1
"""A neighbour that is this much less similar than the nearest one has 1/e of its vote."""
PRIOR = 1.0
"""Votes of an imaginary neighbour that knows nothing: one neighbour alone is no certainty (Laplace)."""
BLOCK = 2048
LARGEST = 500_000
"""Labels of neighbours, as numbers, that are looked at together: several of many classes take much memory."""


def vote(
    similarities: Array, targets: Array, classes: int, *, multiple: bool, among: int | None = None
) -> Floats:
    """Return the probabilities (n, C) that neighbours give, rows of zeros where there is no neighbour.

    ``similarities`` (n, k) are cosines, in any order; ``targets`` are class indices (n, k), -1 for no
    neighbour, or where ``multiple`` 0/1 (n, k, C) with a similarity of -inf for no neighbour.
    Single choice: rows sum to one; where there are more classes than columns (``among``), to less. Multiple:
    each class on its own.
    """
    similarities = np.asarray(similarities, np.float64)
    there = np.isfinite(similarities)
    if not multiple:
        there = there & (targets >= 0)
    if not similarities.shape[1]:
        return np.zeros((len(similarities), classes), np.float32)
    known = np.where(there, similarities, -np.inf)
    best = known.max(axis=1, keepdims=True)
    weights = np.where(there, np.exp((known - np.where(np.isfinite(best), best, 0.0)) / SHARPNESS), 0.0)
    total = weights.sum(axis=1, keepdims=True)
    if multiple:
        votes = np.einsum("nk,nkc->nc", weights, np.asarray(targets, np.float64))
        prior = PRIOR / 2
    else:
        votes = np.zeros((len(similarities), classes))
        rows, columns = np.nonzero(there)
        np.add.at(votes, (rows, targets[rows, columns]), weights[rows, columns])
        prior = PRIOR / max(among or classes, 1)
    return np.clip(np.where(total > 0, (votes + prior) / (total + PRIOR), 0.0), 0, 1).astype(np.float32)


def vote_all(
    queries: Floats,
    teachers: Floats,
    teacher_targets: Array,
    classes: int,
    k: int,
    *,
    multiple: bool,
    among: int | None = None,
) -> Floats:
    """Return ``vote`` (n, C) of each query's ``k`` nearest teachers, found exactly.

    ``queries`` (n, d) and ``teachers`` (m, d) are unit vectors, ``teacher_targets`` (m,) or (m, C).
    """
    out = np.zeros((len(queries), classes), np.float32)
    for start in range(0, len(queries), BLOCK):  # the labels of all neighbours of all queries would not fit
        block = slice(start, start + BLOCK)
        near, similarities = nearest(queries[block], teachers, k)
        some = max(1, LARGEST // (near.shape[1] * classes or 1)) if multiple else BLOCK
        for at in range(0, len(near), some):
            part = slice(at, at + some)
            votes = vote(
                similarities[part], teacher_targets[near[part]], classes, multiple=multiple, among=among
            )
            out[start + at : start + at + len(votes)] = votes
    return out
