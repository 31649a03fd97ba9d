"""Find images that are unlike all others: broken files, wrong folders, new kinds. scikit-learn is needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from strategies.base import apart, batch
from strategies.pool import Pool, Rows, Scores, StrategyError, vectors_of

PEERS = 1024
"""Items that LOF compares with at most, drawn at random."""
NEIGHBOURS = 20
"""Neighbours that a local density is taken over, as the authors advise: 10 to 50."""
TREES = 100
CANDIDATES = 100_000
"""Open items that are judged at most, drawn at random: more would take longer than a second."""


@batch("oddity_lof", needs="vectors")
def oddity_lof(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask about items that lie much more lonely than their neighbours do (LOF, Breunig et al. 2000).

    Mean local density of the 20 nearest items over one's own. Good for odd ones beside a dense group. Judged
    against 1,024 items drawn at random, at most 100,000 open items (above, a random sample): O(n d 1024).
    """
    NearestNeighbors = _sklearn("neighbors").NearestNeighbors
    rows, vectors = _candidates(pool, rng), vectors_of(pool)
    everyone = np.flatnonzero(pool.available | pool.labelled)
    peers = rng.choice(everyone, min(PEERS, len(everyone)), replace=False)
    many = min(NEIGHBOURS, len(peers) - 1)
    if many < 1:
        return rows
    search = NearestNeighbors(n_neighbors=many + 1, algorithm="brute").fit(vectors[peers])
    distances, who = _others(search.kneighbors(vectors[peers]), np.arange(len(peers)), many)
    reach = distances[:, -1]  # of each peer to the last of its neighbours
    density = _density(distances, who, reach)
    place = np.full(len(pool), -1)
    place[peers] = np.arange(len(peers))
    distances, who = _others(search.kneighbors(vectors[rows]), place[rows], many)
    scores = density[who].mean(axis=1) / _density(distances, who, reach)
    return _oddest(rows, scores, pool, k, rng)


@batch("oddity_forest", needs="vectors")
def oddity_forest(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask about items that few random cuts separate from all others (Isolation Forest, Liu et al. 2008).

    2^(-mean depth / expected depth) over 100 trees of 256 items. Good for items far from everything. At most
    100,000 open items are judged (above, a random sample): O(n · 100 trees · depth 8).
    """
    IsolationForest = _sklearn("ensemble").IsolationForest
    rows, vectors = _candidates(pool, rng), vectors_of(pool)
    sample = rng.choice(rows, min(10_000, len(rows)), replace=False)
    forest = IsolationForest(
        n_estimators=TREES, max_samples=min(256, len(sample)), random_state=int(rng.integers(2**31))
    )
    forest.fit(vectors[sample])
    return _oddest(rows, -forest.score_samples(vectors[rows]), pool, k, rng)


def _sklearn(module: str) -> Any:
    """Loaded where it is needed: it takes a second, and the other strategies do without it."""
    try:
        return import_module(f"sklearn.{module}")
    except ImportError:
        raise StrategyError("Oddities need scikit-learn: pip install scikit-learn.") from None


def _candidates(pool: Pool, rng: np.random.Generator) -> Rows:
    rows = np.flatnonzero(pool.available)
    return rows if len(rows) <= CANDIDATES else np.sort(rng.choice(rows, CANDIDATES, replace=False))


def _others(found: tuple[Scores, Rows], own: Rows, many: int) -> tuple[Scores, Rows]:
    """Drop each item itself (``own`` is its number among the peers, -1 for none), else the farthest one."""
    distances, who = found
    drop = np.where((who == own[:, None]).any(axis=1), (who == own[:, None]).argmax(axis=1), many)
    keep = np.arange(who.shape[1]) != drop[:, None]
    return distances[keep].reshape(-1, many), who[keep].reshape(-1, many)


def _density(distances: Scores, who: Rows, reach: Scores) -> Scores:
    """Local reachability density; the small term keeps heaps of copies finite."""
    density: Scores = 1.0 / (np.maximum(distances, reach[who]).mean(axis=1) + 1e-3)
    return density


def _oddest(rows: Rows, scores: Scores, pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """The highest scores first, near-duplicates apart, then in random order those that were not judged."""
    order = apart(rows[np.argsort(-scores, kind="stable")], pool.vectors)
    if k <= len(order):
        return order[:k]
    rest = np.setdiff1d(np.flatnonzero(pool.available), rows)
    complete: Rows = np.concatenate([order, rng.permutation(rest)])
    return complete[:k]
