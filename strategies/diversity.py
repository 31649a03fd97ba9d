"""Cover the data: items far from what is labelled, or typical of a region without labels."""

from __future__ import annotations

import numpy as np

from strategies.base import Pool, Rows, StrategyError, batch

TEACHERS = 4096
"""Labelled items that distances are measured to at most: the newest say where the rest is."""


@batch("diversity", needs="vectors")
def k_center(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask about the item farthest from all that are known (k-center greedy, Sener & Savarese 2018)."""
    if pool.vectors is None:
        raise StrategyError("diversity needs vectors, and the pool has none.")
    rows = np.flatnonzero(pool.available)
    if not len(rows) or not k:
        return np.empty(0, np.int64)
    vectors = np.ascontiguousarray(pool.vectors[rows], np.float32)
    labelled = np.flatnonzero(pool.labelled)
    if len(labelled) > TEACHERS:
        labelled = rng.choice(labelled, TEACHERS, replace=False)
    # On unit vectors the smallest of the largest similarities is the largest of the smallest distances.
    closest = np.full(len(rows), -np.inf, np.float32)
    for start in range(0, len(labelled), 256):
        block = pool.vectors[labelled[start : start + 256]]
        np.maximum(closest, (vectors @ block.T).max(axis=1), out=closest)
    chosen: list[int] = []
    at = int(closest.argmin()) if len(labelled) else int((vectors @ vectors.mean(axis=0)).argmax())
    for _ in range(min(k, len(rows))):
        chosen.append(at)
        np.maximum(closest, vectors @ vectors[at], out=closest)
        closest[at] = np.inf
        at = int(closest.argmin())
    return rows[chosen]


@batch("typical", needs="regions")
def typical(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask about the most typical item of each region, those without a label first (Hacohen et al. 2022).

    After that regions take turns in proportion to what is left in them, labels counted as seats (D'Hondt).
    """
    if pool.clusters is None or pool.density is None:
        raise StrategyError("typical needs regions, and the pool has none.")
    rows = np.flatnonzero(pool.available)
    if not len(rows):
        return rows
    clusters = pool.clusters[rows]
    regions = int(pool.clusters.max()) + 1
    size = np.bincount(clusters, minlength=regions)
    held = np.bincount(pool.clusters[pool.labelled], minlength=regions)
    inside = np.lexsort((-pool.density[rows], clusters))
    first = np.concatenate([[0], np.cumsum(size)[:-1]])
    place = np.empty(len(rows), np.int64)
    place[inside] = np.arange(len(rows)) - np.repeat(first, size)
    untouched = (held[clusters] == 0) & (place == 0)
    seats = size[clusters] / (1.0 + held[clusters] + place)
    order: Rows = rows[np.lexsort((place, -seats, ~untouched))]
    return order[:k]
