"""Two strategies as somebody else would write them: one of ten lines, one with a parameter."""

import numpy as np

from strategies import Pool, QueryStrategy, Scores, acquisition, factory


@acquisition("freshest")
def freshest(pool: Pool) -> Scores:
    """Ask about the newest items first."""
    return np.arange(len(pool))


@factory("farthest")
def farthest(row: int = 0) -> QueryStrategy:
    """Ask about the items least like that of one row."""

    @acquisition("farthest", needs="vectors")
    def score(pool: Pool) -> Scores:
        return -(pool.vectors @ pool.vectors[row])

    return score
