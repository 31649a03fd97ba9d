"""Cover the data: items far from what is labelled, or typical of a region without labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from strategies.base import batch
from strategies.clusters import closest, k_means
from strategies.pool import Floats, Mask, Pool, Rows, regions_of, vectors_of
from strategies.uncertainty import places

TEACHERS = 4096
"""Labelled items that distances are measured to at most, drawn at random."""
MOST_GROUPS = 500
"""Groups of k-means and TypiClust at most, as in the paper of the latter."""
NEIGHBOURS, PEERS = 20, 256
"""TypiClust's neighbours, and how many items of the same group they are searched among at most."""
CANDIDATES = 100_000
"""TypiClust: open items that are considered at most, drawn at random."""


def teachers(pool: Pool, rng: np.random.Generator) -> Rows:
    """Return the labelled rows, at most ``TEACHERS`` of them, drawn at random."""
    labelled = np.flatnonzero(pool.labelled)
    return labelled if len(labelled) <= TEACHERS else rng.choice(labelled, TEACHERS, replace=False)


@batch("diversity", needs="vectors")
def k_center(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask about the item farthest from all that are known (k-center greedy, Sener & Savarese 2018).

    argmax over open items of the distance to the nearest labelled or chosen one. Good to see every kind of
    image once, odd ones included. O(n d (k + labels)), labels counted up to 4,096 of them.
    """
    given = vectors_of(pool)
    rows = np.flatnonzero(pool.available)
    vectors = np.ascontiguousarray(given[rows], np.float32)
    known = teachers(pool, rng)
    # On unit vectors the smallest of the largest similarities is the largest of the smallest distances.
    near = closest(vectors, given[known])
    chosen: list[int] = []
    at = int(near.argmin()) if len(known) else int((vectors @ vectors.mean(axis=0)).argmax())
    for _ in range(k):
        chosen.append(at)
        np.maximum(near, vectors @ vectors[at], out=near)
        near[at] = np.inf
        at = int(near.argmin())
    return rows[chosen]


@batch("kmeans", needs="vectors")
def kmeans(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask about the item nearest each of k centres, those of large groups first (Zhdanov 2019, unweighted).

    Spherical k-means on the open items. Good for one even batch. O(n d k), at most 500 groups, centres
    fitted on at most 20,000 items.
    """
    rows = np.flatnonzero(pool.available)
    group, cosine = k_means(vectors_of(pool)[rows], min(k, MOST_GROUPS), rng)
    place, size = places(group, cosine), np.bincount(group)
    order: Rows = rows[np.lexsort((-size[group], place))]
    return order[:k]


@batch("typical", needs="regions")
def typical(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask about the most typical item of each region of the map, those without a label first.

    TypiClust (Hacohen et al. 2022) on regions that are there already. Good from the first label on. After
    one per region these take turns in proportion to what is left in them, labels counted as seats (D'Hondt).
    O(n log n).
    """
    regions, density = regions_of(pool)
    return in_turn(pool.available, pool.labelled, regions, density)[:k]


@batch("typiclust", needs="vectors")
def typiclust(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    """Ask about the most typical item of each of the largest groups without a label (Hacohen et al. 2022).

    As many groups as labels and questions together, at most 500; typicality is the mean cosine to the 20
    nearest items of the group, searched among at most 256 of them. Good with few labels and no map of
    regions. O(n d (groups + 256)), centres fitted on at most 20,000 items; at most 100,000 open items are
    considered (above, a random sample).
    """
    vectors = vectors_of(pool)
    considered = np.flatnonzero(pool.available)
    if len(considered) > max(CANDIDATES, k):
        considered = rng.choice(considered, max(CANDIDATES, k), replace=False)
    open_ = np.zeros(len(pool), bool)
    open_[considered] = True
    rows = np.flatnonzero(open_ | pool.labelled)
    count = min(int(pool.labelled.sum()) + k, MOST_GROUPS)
    groups = np.zeros(len(pool), np.int32)
    groups[rows] = k_means(vectors[rows], count, rng)[0]
    typicality = np.zeros(len(pool), np.float32)
    order = rows[np.argsort(groups[rows], kind="stable")]
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if not pool.labelled[members].all():
            typicality[members] = _typicality(vectors[members], rng)
    return in_turn(open_, pool.labelled, groups, typicality)[:k]


def _typicality(vectors: Floats, rng: np.random.Generator) -> Floats:
    peers = vectors if len(vectors) <= PEERS else vectors[rng.choice(len(vectors), PEERS, replace=False)]
    cosines, many = vectors @ peers.T, min(NEIGHBOURS, len(peers))
    mean: Floats = np.partition(cosines, len(peers) - many, axis=1)[:, -many:].mean(axis=1)
    return mean


def in_turn(available: Mask, labelled: Mask, regions: npt.NDArray[np.int32], density: Floats) -> Rows:
    """Return the available rows: the densest of each untouched region, largest first, then by D'Hondt."""
    rows = np.flatnonzero(available)
    clusters, count = regions[rows].astype(np.int64), int(regions.max()) + 1
    size, held = np.bincount(clusters, minlength=count), np.bincount(regions[labelled], minlength=count)
    place = places(clusters, density[rows])
    untouched = (held[clusters] == 0) & (place == 0)
    seats = size[clusters] / (1.0 + held[clusters] + place)
    order: Rows = rows[np.lexsort((place, -seats, ~untouched))]
    return order
