"""Order without a model."""

from __future__ import annotations

import numpy as np

from strategies.base import Pool, Rows, batch


@batch("random")
def random(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask in random order: the control that every other strategy has to beat."""
    return rng.permutation(np.flatnonzero(pool.available))[:k]
