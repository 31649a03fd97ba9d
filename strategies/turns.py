"""Whose turn it is, where several strategies share one order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strategies.pool import Pool, Rows

PERIOD = 1000
"""Turns after which the pattern of a mix starts again."""


def turns(shares: Sequence[float], first: int, count: int) -> Rows:
    """Return whose turn it is (count,) from turn ``first`` on, evenly spread in proportion to the shares.

    A pure function of the turn, so a queue whose order is made anew after every answer keeps to the shares.
    The j-th turn of a part comes at the time (j + ½) / share.
    """
    first %= PERIOD
    share = np.asarray(shares, np.float64) / np.sum(shares)
    many = np.ceil(share * (first + count)).astype(int) + 1
    who = np.repeat(np.arange(len(share)), many)
    times = np.concatenate([(np.arange(n) + 0.5) / s for n, s in zip(many, share, strict=True)])
    taken: Rows = who[np.argsort(times, kind="stable")][first : first + count]
    return taken


def interleave(orders: Sequence[Rows], taken: Rows, k: int) -> Rows:
    """Return at most ``k`` rows, each once: in turn n the best left of order ``taken[n]``, then the rest."""
    seen: set[int] = set()
    left = [iter(order.tolist()) for order in orders]

    def following(who: int) -> int | None:
        return next((row for row in left[who] if row not in seen), None)

    chosen: list[int] = []
    for who in (
        *taken.tolist(),
        *np.repeat(np.arange(len(orders)), [len(order) for order in orders]).tolist(),
    ):
        if len(chosen) == k:
            break
        row = following(who)
        if row is not None:
            seen.add(row)
            chosen.append(row)
    return np.array(chosen, np.int64)


def answered(pool: Pool) -> int:
    """Return how many items have an answer: the turn of a mix."""
    return int((pool.answers >= 0).sum())
