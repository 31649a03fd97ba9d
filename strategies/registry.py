"""Strategies by name, built in and of third parties (entry points of the group ``rush.strategies``)."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points

import numpy as np

from strategies.auto import auto
from strategies.base import QueryStrategy
from strategies.chains import cluster_chain
from strategies.coverage import badge, probcover
from strategies.diversity import k_center, kmeans, typical, typiclust
from strategies.improvement import rush
from strategies.outliers import oddity_forest, oddity_lof
from strategies.pool import Pool, Rows, StrategyError
from strategies.quality import mislabel
from strategies.rare import max_probability, minority
from strategies.simple import random
from strategies.spec_parser import Factory, parse
from strategies.uncertainty import (
    balanced,
    band,
    certain,
    entropy,
    information_density,
    least_confidence,
    margin,
)

log = logging.getLogger(__name__)

GROUP = "rush.strategies"
PROMISED = ("name", "summary", "needs", "uses", "asks", "order")
"""What every strategy has (``QueryStrategy``)."""
FAMILIES: dict[str, tuple[QueryStrategy | Factory, ...]] = {
    "chains": (cluster_chain,),
    "control": (random,),
    "uncertainty": (entropy, least_confidence, margin, information_density, balanced, band, certain),
    "rare classes": (max_probability, minority),
    "coverage": (typical, typiclust, probcover, k_center, kmeans, badge),
    "oddities": (oddity_lof, oddity_forest),
    "label quality": (mislabel,),
    "improvement per second": (rush,),
    "combined": (auto,),
}
"""The built-in strategies by family."""
BUILT_IN: dict[str, QueryStrategy | Factory] = {
    strategy.name: strategy for family in FAMILIES.values() for strategy in family
}


def register(family: str, strategy: QueryStrategy | Factory) -> None:
    """Add a strategy that itself looks up others by name."""
    FAMILIES[family] = (*FAMILIES.get(family, ()), strategy)
    BUILT_IN[strategy.name] = strategy


class UnknownStrategy(StrategyError):
    """There is no strategy of that name, or its arguments don't fit."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows in order, best first; ``fallback`` says why another order had to stand in, where one did."""

    rows: Rows
    fallback: str | None = None


def names() -> list[str]:
    """Return the names of all strategies, built in and installed, each usable without arguments."""
    return sorted({*BUILT_IN, *_installed()})


def families() -> dict[str, list[QueryStrategy | Factory]]:
    """Return all strategies by family; those of third parties are ``installed``, without broken ones."""
    found = {family: list(members) for family, members in FAMILIES.items()}
    extra = []
    for name, entry in sorted(_installed().items()):
        if name not in BUILT_IN:
            try:
                extra.append(_load(entry))
            except UnknownStrategy as error:
                log.warning("%s", error)
    return found | ({"installed": extra} if extra else {})


def get(name: str) -> QueryStrategy:
    """Return the strategy of a name, which may hold arguments: ``margin``, ``band(0.4,0.6)``.

    UnknownStrategy lists what there is and guesses what was meant, or says what is wrong with the arguments.
    """
    try:
        bare, arguments = parse(name)
        found = BUILT_IN.get(bare) or (_load(_installed()[bare]) if bare in _installed() else None)
        if found is None:
            close = difflib.get_close_matches(bare, names(), 1)
            meant = f"Did you mean {close[0] + name[len(bare) :]!r}? " if close else ""
            raise UnknownStrategy(f"There is no strategy {name!r}. {meant}There are: {', '.join(names())}.")
        if isinstance(found, Factory):
            return found(*arguments)
        if arguments:
            raise UnknownStrategy(f"{bare} takes no arguments, and {name!r} has some.")
        return found
    except UnknownStrategy:
        raise
    except StrategyError as error:
        raise UnknownStrategy(str(error)) from None


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


@cache
def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


@cache
def _load(entry: EntryPoint) -> QueryStrategy | Factory:
    try:
        found = entry.load()
    except Exception as error:
        raise UnknownStrategy(f"{entry.name!r} ({entry.value}) can't be loaded: {error}.") from error
    lacking = [name for name in PROMISED if not hasattr(found, name)]
    if lacking and not isinstance(found, Factory):
        hint = "Put one of the decorators of strategies on it."
        raise UnknownStrategy(f"{entry.value} is no strategy: it has no {', '.join(lacking)}. {hint}")
    strategy: QueryStrategy | Factory = found
    return strategy
