"""Order without a model."""

from __future__ import annotations

import numpy as np

from strategies.base import batch
from strategies.pool import Pool, Rows, Scores


@batch("random")
def random(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask in random order: the control that every other strategy has to beat.

    Good for honest figures: what it labelled stands for the whole pool. O(n log n).
    """
    numbers = draw(pool, rng)
    rows = np.flatnonzero(pool.available)
    return rows[np.argsort(numbers[rows], kind="stable")][:k]


def draw(pool: Pool, rng: np.random.Generator) -> Scores:
    """Return a number (n,) per item, so that the order of the rest stays while items are labelled."""
    return rng.random(len(pool))
