"""Groups of unit vectors: spherical k-means in plain numpy."""

from __future__ import annotations

import numpy as np

from strategies.pool import Floats, Rows

FITTED = 20_000
"""Items that the centres are fitted on at most; all others only join the nearest centre."""
TURNS = 10
"""Rounds of Lloyd's algorithm: more change little on a sample."""
BLOCK = 8192


def k_means(vectors: Floats, count: int, rng: np.random.Generator) -> tuple[Rows, Floats]:
    """Return the group (n,) of each unit vector and its cosine (n,) to its centre; see ``centres``."""
    return nearest(vectors, centres(vectors, count, rng))


def centres(vectors: Floats, count: int, rng: np.random.Generator, start: Floats | None = None) -> Floats:
    """Return unit centres (K, d) of at most ``count`` groups of unit vectors (n, d), n > 0.

    k-means++ (Arthur & Vassilvitskii 2007), spherical (Dhillon & Modha 2001); fewer groups where there are
    fewer different vectors. ``start`` (≤ count, d): centres to go on from, which keep their numbers. Time
    O(n d count), fitted on at most 20,000 of the vectors.
    """
    n = len(vectors)
    sample = vectors if n <= FITTED else vectors[np.sort(rng.choice(n, FITTED, replace=False))]
    old = sample[:0] if start is None else start
    found = np.concatenate([old, sample[_spread(sample, min(count, len(sample)) - len(old), rng, old)]])
    for _ in range(TURNS):
        group, _ = nearest(sample, found)
        order = np.argsort(group, kind="stable")
        there, first = np.unique(group[order], return_index=True)
        sums = np.add.reduceat(sample[order], first, axis=0)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        fresh = found.copy()
        fresh[there] = np.where(norms > 1e-6, sums / np.maximum(norms, 1e-6), found[there])
        if np.array_equal(fresh, found):
            break
        found = fresh
    return found


def nearest(vectors: Floats, centres: Floats) -> tuple[Rows, Floats]:
    """Return the number (n,) of the centre of highest cosine for each vector, and that cosine (n,)."""
    group = np.empty(len(vectors), np.int64)
    cosine = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), BLOCK):
        near = vectors[start : start + BLOCK] @ centres.T
        best = near.argmax(axis=1)
        group[start : start + BLOCK] = best
        cosine[start : start + BLOCK] = near[np.arange(len(best)), best]
    return group, cosine


def closest(vectors: Floats, others: Floats) -> Floats:
    """Return the highest cosine (n,) of each vector to any of the others; minus infinity for none."""
    if not len(others):
        return np.full(len(vectors), -np.inf, np.float32)
    return nearest(vectors, others)[1]


def _spread(vectors: Floats, count: int, rng: np.random.Generator, start: Floats) -> Rows:
    """At most ``count`` rows far from the centres there are: k-means++, by squared distance."""
    chosen: list[int] = []
    distance = np.full(len(vectors), np.inf, np.float32)
    for centre in start:
        np.minimum(distance, np.clip(1.0 - vectors @ centre, 0.0, None), out=distance)
    for _ in range(count):
        following = int(rng.integers(len(vectors))) if np.isinf(distance[0]) else draw(distance, rng)
        if following is None:
            break
        chosen.append(following)
        np.minimum(distance, np.clip(1.0 - vectors @ vectors[following], 0.0, None), out=distance)
    return np.array(chosen, np.int64)


def draw(weights: Floats, rng: np.random.Generator) -> int | None:
    """Return an index drawn in proportion to its weight; None where all weights are (nearly) 0."""
    total = np.cumsum(weights, dtype=np.float64)
    if total[-1] < 1e-6:
        return None
    found = int(np.searchsorted(total, rng.random() * total[-1], side="right"))
    return min(found, len(weights) - 1)
