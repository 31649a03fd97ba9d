"""Query strategies over numpy arrays: which item to ask about next."""

from strategies.base import (
    Acquisition,
    Batch,
    Chain,
    Pool,
    QueryStrategy,
    Scores,
    Step,
    StrategyError,
    acquisition,
    batch,
    chain,
)
from strategies.registry import Selection, UnknownStrategy, get, names, select

__all__ = [
    "Acquisition",
    "Batch",
    "Chain",
    "Pool",
    "QueryStrategy",
    "Scores",
    "Selection",
    "Step",
    "StrategyError",
    "UnknownStrategy",
    "acquisition",
    "batch",
    "chain",
    "get",
    "names",
    "select",
]
