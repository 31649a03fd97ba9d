"""Order without a model."""

from __future__ import annotations

import numpy as np

from strategies.base import batch
from strategies.pool import Pool, Rows


@batch("random")
def random(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask in random order: the control that every other strategy has to beat.

    Good for honest figures: what it labelled stands for the whole pool. O(n log n).
    """
    draw = rng.random(len(pool))  # one per item, so that the order of the rest stays while items are labelled
    rows = np.flatnonzero(pool.available)
    return rows[np.argsort(draw[rows], kind="stable")][:k]
