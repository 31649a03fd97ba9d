"""Ask where the model is unsure (uncertainty sampling, Lewis & Gale 1994).

Scores of one item each, so all take O(n C) time. Good once suggestions are right more often than not;
with a handful of labels prefer chains or ``typical`` (Hacohen et al. 2022).
"""

from __future__ import annotations

import numpy as np

from strategies.base import QueryStrategy, acquisition, apart, batch
from strategies.pool import Pool, Rows, Scores, StrategyError, probabilities_of, vectors_of
from strategies.spec_parser import factory


@acquisition("uncertainty", needs="probabilities")
def entropy(pool: Pool) -> Scores:
    """Ask about items whose class distribution has the highest entropy (Shannon 1948; Settles 2009, 3.1).

    -Σ p log p. Good where several classes compete for an item.
    """
    p = np.clip(probabilities_of(pool), 1e-12, 1.0)
    entropy: Scores = -(p * np.log(p)).sum(axis=1)
    return entropy


@acquisition("least_confidence", needs="probabilities")
def least_confidence(pool: Pool) -> Scores:
    """Ask about items whose likeliest class is least likely (Lewis & Gale 1994).

    1 - max p: the probability that the suggestion is wrong. Good where only the suggestion counts.
    """
    unsure: Scores = 1.0 - probabilities_of(pool).max(axis=1)
    return unsure


@acquisition("margin", needs="probabilities")
def margin(pool: Pool) -> Scores:
    """Ask about items whose two likeliest classes are hardest to tell apart (Scheffer et al. 2001).

    1 - (p₁ - p₂). Good for the border between two classes; the steadiest of these three with
    many classes.
    """
    p = probabilities_of(pool)
    if p.shape[1] < 2:
        return np.zeros(len(pool))
    best = np.partition(p, p.shape[1] - 2, axis=1)[:, -2:]
    difference: Scores = 1.0 - (best[:, 1] - best[:, 0])
    return difference


@factory("information_density")
def information_density(beta: float = 1.0) -> QueryStrategy:
    """Ask about unsure items in crowded places, so that outliers don't win (Settles & Craven 2008).

    entropy · (mean cosine to the open items)^beta; on unit vectors that mean is one product with their mean.
    Good where plain uncertainty asks about blurred or odd images. O(n (C + d)).
    """
    if beta < 0:
        raise StrategyError(f"information_density needs beta ≥ 0, not {beta}.")

    @acquisition("information_density", needs=("probabilities", "vectors"))
    def score(pool: Pool) -> Scores:
        vectors = vectors_of(pool)
        similarity = np.clip(vectors @ vectors[pool.available].mean(axis=0), 0.0, None)
        weighted: Scores = entropy.score(pool) * similarity**beta
        return weighted

    return score


@batch("balanced", needs="probabilities")
def balanced(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask about the least sure items of each suggested class, classes with fewest labels first.

    Class-balanced least confidence: classes take turns, and each label counts as a turn taken (the quota
    idea of Aggarwal et al. 2020 on 1 - max p). Good for skewed data. O(n (C + log n)).
    """
    rows = rng.permutation(np.flatnonzero(pool.available))
    p = probabilities_of(pool)[rows]
    suggested, unsure = p.argmax(axis=1), 1.0 - p.max(axis=1)
    turn = places(suggested, unsure) + pool.per_class(p.shape[1])[suggested]
    return apart(rows[np.lexsort((-unsure, turn))], pool.vectors)[:k]


@factory("band")
def band(low: float = 0.4, high: float = 0.6) -> QueryStrategy:
    """Ask about items whose suggestion is as sure as low to high, in random order; about no others.

    low ≤ max p ≤ high. Good to look at one slice of certainty: is it honest? O(n C).
    """
    if not 0 <= low <= high <= 1:
        raise StrategyError(f"band needs 0 ≤ low ≤ high ≤ 1, not {low} and {high}.")

    @acquisition("band", needs="probabilities")
    def score(pool: Pool) -> Scores:
        sure = probabilities_of(pool).max(axis=1)
        return np.where((sure >= low) & (sure <= high), 0.0, -np.inf)

    return score


@factory("certain")
def certain(least: float = 0.95) -> QueryStrategy:
    """Ask about items whose suggestion is at least this sure, the surest first; about no others.

    max p where max p ≥ ``least``. Good at the end: a sweep that confirms most with one key each. O(n C).
    """
    if not 0 <= least <= 1:
        raise StrategyError(f"certain needs a probability between 0 and 1, not {least}.")

    @acquisition("certain", needs="probabilities")
    def score(pool: Pool) -> Scores:
        sure = probabilities_of(pool).max(axis=1)
        return np.where(sure >= least, sure, -np.inf)

    return score


def places(groups: Rows, scores: Scores) -> Rows:
    """Return the place (n,) of each item among those of its group, 0 for the highest score."""
    inside = np.lexsort((-scores, groups))
    size = np.bincount(groups)
    place = np.empty(len(groups), np.int64)
    place[inside] = np.arange(len(groups)) - np.repeat(np.cumsum(size) - size, size)
    return place
