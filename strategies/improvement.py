"""Expected improvement per annotator second: what a label is worth, over what it costs."""

from __future__ import annotations

import numpy as np

from strategies.base import apart, batch
from strategies.chains import grouped
from strategies.clusters import k_means
from strategies.cost import ACCEPT_SECONDS, CORRECT_SECONDS, PAGE_SECONDS
from strategies.pool import Floats, Pool, Rows, probabilities_of, vectors_of
from strategies.uncertainty import places

LEARNING = 0.2
"""Exponent b of the learning curve, error ∝ labels^-b: 0.15 to 0.2 from 100 to 1,000 labels of CIFAR-10."""
CELL, MOST_CELLS = 40, 256
"""Open items per cell and cells at most: within a cell a label speaks for its neighbours."""


def seconds_of(pool: Pool, rows: Rows) -> Floats:
    """Return expected annotator seconds (m,) of these rows: the pool's, else 0.66 + 0.6 p + 2.5 (1 - p).

    p is the probability of the suggestion, so what is confirmed with one key costs least.
    """
    if pool.seconds is not None:
        return np.maximum(pool.seconds[rows], 0.05)
    sure = np.clip(probabilities_of(pool)[rows].max(axis=1), 0.0, 1.0)
    seconds: Floats = PAGE_SECONDS + ACCEPT_SECONDS * sure + CORRECT_SECONDS * (1 - sure)
    return seconds


@batch("rush", needs=("probabilities", "vectors"))
def _best(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask where a second of the annotator's time puts most labels of the whole pool right.

    improvement(i) / seconds(i), improvement(i) = u(i) · (1 + b · t(i) · M / (1 + L)):

    - u(i) = 1 - max p(i): the probability that the suggestion is wrong. An answer puts at least its own
      label right; one that was expected teaches nothing.
    - M / (1 + L) · b: wrong labels of its cell that one more label puts right. M = Σ u of the cell's open
      items, L = its labels, chosen ones included, so cells take turns; from error ∝ labels^-b, b = 0.2.
    - t(i): how typical it is of the cell (cosine to its centre over the cell's best), so outliers, which
      say nothing about others, count for themselves only.
    - seconds(i): the pool's, else a prior (``seconds_of``): one key costs a fraction of a correction.

    Cells are k-means groups of about 40 open items, at most 256. The best are asked for class by class
    (``chains.grouped``), since an image of the class before takes a fraction of the time. Good from the
    first suggestions to the end: while M is large it learns, later it mops up. After expected error
    reduction (Roy & McCallum 2001) and return on investment (Haertel et al. 2008), without retraining.
    O(n (d · 256 + C)).
    """
    rows = rng.permutation(np.flatnonzero(pool.available))
    labelled = np.flatnonzero(pool.labelled)
    everyone = np.concatenate([rows, labelled])
    cells = int(np.clip(len(rows) // CELL, 1, MOST_CELLS))
    group, cosine = k_means(vectors_of(pool)[everyone], cells, rng)
    held = np.bincount(group[len(rows) :], minlength=cells)
    group, cosine = group[: len(rows)], np.clip(cosine[: len(rows)], 0.0, 1.0)
    wrong = 1.0 - np.clip(probabilities_of(pool)[rows].max(axis=1), 0.0, 1.0)
    mass = np.bincount(group, weights=wrong, minlength=cells)
    best = np.full(cells, 1e-6)
    np.maximum.at(best, group, cosine)
    typical, seconds = cosine / best[group], seconds_of(pool, rows)

    def rate(turn: Rows) -> Floats:
        spread = LEARNING * typical * mass[group] / (1.0 + held[group] + turn)
        worth: Floats = wrong * (1.0 + spread) / seconds
        return worth

    # The best of a cell first; each further one finds one label more there.
    scores = rate(places(group, rate(np.zeros(len(rows), np.int64))))
    return apart(rows[np.argsort(-scores, kind="stable")], pool.vectors)[:k]


rush = grouped(_best)
"""See ``_best`` for the formula."""
