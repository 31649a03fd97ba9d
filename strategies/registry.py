"""Strategies by name, built in and of third parties (entry points of the group ``rush.strategies``)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.metadata import entry_points

import numpy as np

from strategies.base import Pool, QueryStrategy, Rows, StrategyError
from strategies.chains import cluster_chain
from strategies.diversity import k_center, typical
from strategies.simple import random
from strategies.uncertainty import entropy, margin

GROUP = "rush.strategies"
BUILT_IN: dict[str, QueryStrategy] = {
    strategy.name: strategy for strategy in (cluster_chain, random, entropy, margin, k_center)
}


class UnknownStrategy(StrategyError):
    """There is no strategy of that name."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows in order, best first; ``fallback`` says why another order had to stand in, where one did."""

    rows: Rows
    fallback: str | None = None


def names() -> list[str]:
    """Return the names of all strategies, built in and installed."""
    return sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=GROUP))})


def get(name: str) -> QueryStrategy:
    """Return the strategy of that name; UnknownStrategy lists what there is and guesses what was meant."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name == typical.name:  # where chains start; no order of its own for a project
        return typical
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            strategy: QueryStrategy = entry.load()
            return strategy
    close = difflib.get_close_matches(name, names(), 1)
    meant = f"Did you mean {close[0]!r}? " if close else ""
    raise UnknownStrategy(f"There is no strategy {name!r}. {meant}There are: {', '.join(names())}.")


def select(name: str, pool: Pool, k: int, seed: int = 0) -> Selection:
    """Order the pool by a strategy, reproducibly for a seed.

    Where the pool lacks a signal that the strategy needs (before anything is learnt), typical items come
    first, or random ones where there is no map either.
    """
    strategy, rng = get(name), np.random.default_rng(seed)
    missing = pool.missing(strategy.needs)
    if not missing:
        return Selection(strategy.order(pool, k, rng))
    stand_in: QueryStrategy = random if pool.missing(typical.needs) else typical
    reason = f"{name} needs {', '.join(missing)}, not there yet: {stand_in.name} order"
    return Selection(stand_in.order(pool, k, rng), reason)
