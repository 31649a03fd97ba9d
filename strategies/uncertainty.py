"""Ask where the model is unsure (uncertainty sampling, Lewis & Gale 1994)."""

from __future__ import annotations

import numpy as np

from strategies.base import Pool, Scores, StrategyError, acquisition


def _probabilities(pool: Pool) -> Scores:
    if pool.probabilities is None:
        raise StrategyError("This strategy needs probabilities, and the pool has none.")
    return pool.probabilities


@acquisition("uncertainty", needs="probabilities")
def entropy(pool: Pool) -> Scores:
    """Ask about items whose class distribution has the highest entropy (Shannon 1948; Settles 2009, 3.1)."""
    p = np.clip(_probabilities(pool), 1e-12, 1.0)
    entropy: Scores = -(p * np.log(p)).sum(axis=1)
    return entropy


@acquisition("margin", needs="probabilities")
def margin(pool: Pool) -> Scores:
    """Ask about items whose two likeliest classes are hardest to tell apart (Scheffer et al. 2001)."""
    p = _probabilities(pool)
    if p.shape[1] < 2:
        return np.zeros(len(pool))
    best = np.partition(p, p.shape[1] - 2, axis=1)[:, -2:]
    difference: Scores = 1.0 - (best[:, 1] - best[:, 0])
    return difference
