"""Query strategies over numpy arrays: which item to ask about next."""

from strategies.base import Acquisition, Batch, Chain, QueryStrategy, acquisition, batch, chain
from strategies.combine import mix, only, quota
from strategies.pool import Pool, Scores, Step, StrategyError
from strategies.registry import Selection, UnknownStrategy, families, get, names, select
from strategies.spec_parser import Factory, factory

__all__ = [
    "Acquisition",
    "Batch",
    "Chain",
    "Factory",
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
    "factory",
    "families",
    "get",
    "mix",
    "names",
    "only",
    "quota",
    "select",
]
