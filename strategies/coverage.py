"""Batches by the ground that they cover: balls around items, or the gradients that they would cause."""

from __future__ import annotations

import numpy as np

from strategies.base import QueryStrategy, batch
from strategies.clusters import closest, draw, k_means
from strategies.diversity import teachers
from strategies.pool import Floats, Pool, Rows, StrategyError, probabilities_of, vectors_of
from strategies.spec_parser import factory

CANDIDATES, COVERED = 4096, 8192
"""ProbCover: items that may be chosen, and items that count as covered, at most; each drawn at random."""
PURITY, PILOT = 0.95, 2000
"""ProbCover: share of pure balls that sets their size, and items that it is estimated on."""
GRADIENTS = 100_000
"""BADGE: open items that are considered at most, drawn at random."""


@factory("probcover")
def probcover(cosine: float = 0.0) -> QueryStrategy:
    """Ask about the items whose balls cover most of what no ball covers yet (ProbCover, Yehuda et al. 2022).

    Greedy maximum cover; the ball of an item are those of at least this cosine. Where 0, the widest such that
    95 % of balls hold only one k-means group (as many as classes, else 10). Good with few labels. At most
    4,096 candidates and 8,192 items to cover (random samples): a constant, plus the sampling.
    """
    if not -1 < cosine < 1:
        raise StrategyError(f"probcover needs a cosine between -1 and 1, not {cosine}.")

    @batch("probcover", needs="vectors")
    def choose(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
        vectors = vectors_of(pool)
        rows = np.flatnonzero(pool.available)
        radius = cosine or _pure_cosine(pool, rng)
        shuffled = rng.permutation(rows)
        candidates, sample = vectors[shuffled[:CANDIDATES]], vectors[rng.permutation(rows)[:COVERED]]
        sample = sample[closest(sample, vectors[teachers(pool, rng)]) < radius]
        covers = np.concatenate(  # (covered items, candidates): columns shrink with every choice
            [sample[start : start + 1024] @ candidates.T >= radius for start in range(0, len(sample), 1024)]
            or [np.zeros((0, len(candidates)), bool)]
        )
        count = covers.sum(axis=0)
        open_ = np.ones(len(covers), bool)
        chosen: list[int] = []
        while len(chosen) < k and len(count) and count.max() > 0:
            best = int(count.argmax())
            chosen.append(best)
            newly = np.flatnonzero(covers[:, best] & open_)
            count -= covers[newly].sum(axis=0)
            open_[newly] = False
        order: Rows = np.concatenate([shuffled[chosen], np.delete(shuffled, chosen)])
        return order[:k]

    return choose


def _pure_cosine(pool: Pool, rng: np.random.Generator) -> float:
    """The least cosine at which 95 % of balls hold no item of another group."""
    rows = np.flatnonzero(pool.available | pool.labelled)
    sample = vectors_of(pool)[rng.permutation(rows)[:PILOT]]
    classes = len(pool.classes) if pool.classes else int(pool.answers.max(initial=-1)) + 1
    group, _ = k_means(sample, classes if classes > 1 else 10, rng)
    nearest = np.concatenate(
        [closest(sample[group == own], sample[group != own]) for own in np.unique(group)]
    )
    return float(np.clip(np.quantile(np.clip(nearest, -1.0, 1.0), PURITY), -1.0, 1.0))


@batch("badge", needs=("probabilities", "vectors"))
def badge(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask about unsure items whose gradients point different ways (BADGE, Ash et al. 2020).

    k-means++ on g = (p - onehot(argmax p)) ⊗ head vector. ⟨g, g'⟩ is the product of both factors' products,
    so g is never made. Without head vectors the plain ones. Good for batches of a trained head.
    O(n k (C + h)), at most 100,000 open items (above, a random sample).
    """
    rows = np.flatnonzero(pool.available)
    if len(rows) > max(GRADIENTS, k):
        rows = np.sort(rng.choice(rows, max(GRADIENTS, k), replace=False))
    hidden: Floats = (pool.head if pool.head is not None else vectors_of(pool))[rows]
    error: Floats = probabilities_of(pool)[rows].astype(np.float32)
    error[np.arange(len(rows)), error.argmax(axis=1)] -= 1.0
    norms = np.einsum("ij,ij->i", error, error) * np.einsum("ij,ij->i", hidden, hidden)
    distance = np.full(len(rows), np.inf, np.float32)
    chosen, at = [], int(norms.argmax())
    while True:
        chosen.append(at)
        product = (error @ error[at]) * (hidden @ hidden[at])
        np.minimum(distance, np.clip(norms + norms[at] - 2 * product, 0.0, None), out=distance)
        distance[at] = 0.0
        following = draw(distance, rng) if len(chosen) < k else None
        if following is None:
            break
        at = following
    # Where all gradients left are zero or copies, nothing tells them apart.
    order: Rows = np.concatenate([rows[chosen], rng.permutation(np.delete(rows, chosen))])
    return order[:k]
