"""What the author of a query strategy writes: a function under one of three decorators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from strategies.pool import Floats, Mask, Pool, Rows, Scores, Signal, Step, StrategyError

__all__ = [
    "Acquisition",
    "Asks",
    "Batch",
    "Chain",
    "Floats",
    "Mask",
    "Pool",
    "QueryStrategy",
    "Rows",
    "Scores",
    "Signal",
    "Step",
    "StrategyError",
    "acquisition",
    "apart",
    "batch",
    "chain",
    "top",
]

Asks = Literal["open", "labelled"]
"""Which items a strategy asks about: the caller makes the pool's ``available`` of these."""

DUPLICATE = 0.98
"""Cosine above which two items are near-duplicates: the later one waits behind the screened ones."""
SCREENED = 512
"""Best items that are compared with one another, so that the time does not grow with the pool."""


class QueryStrategy(Protocol):
    """Orders the pool: what is most worth asking about comes first."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def summary(self) -> str: ...  # noqa: D102
    @property
    def needs(self) -> tuple[Signal, ...]: ...  # noqa: D102
    @property
    def uses(self) -> tuple[Signal, ...]: ...  # noqa: D102
    @property
    def asks(self) -> Asks: ...  # noqa: D102

    def order(self, pool: Pool, k: int, rng: np.random.Generator) -> Rows:
        """Return at most ``k`` available rows, best first."""


def top(scores: Scores, available: Mask, k: int, rng: np.random.Generator) -> Rows:
    """Return the ``k`` available rows of the highest scores, ties in random order; StrategyError for NaN.

    A score of minus infinity means that the item is not asked about.
    """
    rows = np.flatnonzero(available)
    values = np.asarray(scores, np.float64)[rows]
    if np.isnan(values).any():
        raise StrategyError(f"{int(np.isnan(values).sum())} of {len(values)} scores are NaN.")
    asked = values > -np.inf
    if not asked.all():
        rows, values = rows[asked], values[asked]
    k = min(k, len(rows))
    if k == 0:
        return np.empty(0, np.int64)
    if k < len(rows) // 4:
        cut = np.partition(values, len(values) - k)[len(values) - k]
        rows, values = rows[values >= cut], values[values >= cut]
    shuffled = rng.permutation(len(rows))
    return rows[shuffled[np.argsort(-values[shuffled], kind="stable")]][:k]


def apart(order: Rows, vectors: Floats | None) -> Rows:
    """Return the order with near-duplicates of better items moved behind the first ``SCREENED`` ones."""
    if vectors is None or len(order) < 2:
        return order
    screened = vectors[order[:SCREENED]]
    if not np.isfinite(screened).all():
        raise StrategyError("vectors hold NaN or infinity. Leave the signal out until it is known.")
    better = np.tril(screened @ screened.T > DUPLICATE, -1)
    kept = np.asarray(~better.any(axis=1))
    for n in np.flatnonzero(~kept):
        kept[n] = not (better[n] & kept).any()
    return np.concatenate([order[:SCREENED][kept], order[:SCREENED][~kept], order[SCREENED:]])


def ready(strategy: QueryStrategy, pool: Pool, k: int) -> int:
    """Return how many rows to choose; StrategyError where the pool can't be ordered by this strategy."""
    if k < 0:
        raise StrategyError(f"k must be 0 or more, not {k}.")
    if missing := pool.missing(strategy.needs):
        raise StrategyError(f"{strategy.name} needs {', '.join(missing)}, and the pool has none.")
    pool.check((*strategy.needs, *strategy.uses))
    return min(k, int(pool.available.sum()))


@dataclass(frozen=True, slots=True)
class Acquisition:
    """A strategy that scores every item by itself; higher is more worth asking.

    Scores do not depend on the order of rows. Near-duplicates of a better item don't fill the top.
    """

    name: str
    needs: tuple[Signal, ...]
    score: Callable[[Pool], Scores]
    uses: tuple[Signal, ...] = ()
    asks: Asks = "open"
    about: str = ""

    @property
    def summary(self) -> str:
        """The promise of the strategy in one sentence."""
        return self.about or summary_of(self.score)

    def order(self, pool: Pool, k: int, rng: np.random.Generator) -> Rows:
        """Return the ``k`` available rows of the highest scores."""
        k = ready(self, pool, k)
        if not k:
            return np.empty(0, np.int64)
        scores = self.score(pool)
        if np.shape(scores) != (len(pool),):
            raise StrategyError(f"{self.name} gave scores of shape {np.shape(scores)}, not {(len(pool),)}.")
        return apart(top(scores, pool.available, max(k, SCREENED), rng), pool.vectors)[:k]


@dataclass(frozen=True, slots=True)
class Batch:
    """A strategy that chooses items together."""

    name: str
    needs: tuple[Signal, ...]
    choose: Callable[[Pool, int, np.random.Generator], Rows]
    uses: tuple[Signal, ...] = ()
    asks: Asks = "open"
    about: str = ""

    @property
    def summary(self) -> str:
        """The promise of the strategy in one sentence."""
        return self.about or summary_of(self.choose)

    def order(self, pool: Pool, k: int, rng: np.random.Generator) -> Rows:
        """Return what the strategy chose; StrategyError where it chose twice or what is not available."""
        k = ready(self, pool, k)
        if not k:
            return np.empty(0, np.int64)
        rows = np.asarray(self.choose(pool, k, rng), np.int64)[:k]
        if len(np.unique(rows)) != len(rows) or not pool.available[rows].all():
            raise StrategyError(f"{self.name} chose a row twice, or one that is not available.")
        return rows


@dataclass(frozen=True, slots=True)
class Chain:
    """A batch strategy that also says what comes right after an answer."""

    name: str
    needs: tuple[Signal, ...]
    step: Callable[[Pool, Step], int | None]
    start: QueryStrategy
    uses: tuple[Signal, ...] = ()
    asks: Asks = "open"
    about: str = ""

    @property
    def summary(self) -> str:
        """The promise of the strategy in one sentence."""
        return self.about or summary_of(self.step)

    def order(self, pool: Pool, k: int, rng: np.random.Generator) -> Rows:
        """Return where new chains start."""
        ready(self, pool, k)
        return self.start.order(pool, k, rng)

    def follow(self, pool: Pool, step: Step) -> int | None:
        """Return the available row that comes next, or None where the chain ends."""
        row = self.step(pool, step)
        if row is not None and not pool.available[row]:
            raise StrategyError(f"{self.name} followed with row {row}, which is not available.")
        return row


def acquisition(
    name: str,
    *,
    needs: Signal | tuple[Signal, ...] = (),
    uses: Signal | tuple[Signal, ...] = (),
    asks: Asks = "open",
) -> Callable[[Callable[[Pool], Scores]], Acquisition]:
    """Make a strategy of a function ``pool → scores (n,)``, higher being more worth asking.

    ``needs`` are signals it can't do without, ``uses`` those it takes into account where there are any.
    """
    return lambda function: Acquisition(name, _signals(needs), function, _signals(uses), asks)


def batch(
    name: str,
    *,
    needs: Signal | tuple[Signal, ...] = (),
    uses: Signal | tuple[Signal, ...] = (),
    asks: Asks = "open",
) -> Callable[[Callable[[Pool, int, np.random.Generator], Rows]], Batch]:
    """Make a strategy of a function ``(pool, k, rng) → ordered rows``; 1 ≤ k ≤ available items."""
    return lambda function: Batch(name, _signals(needs), function, _signals(uses), asks)


def chain(
    name: str,
    *,
    start: QueryStrategy,
    needs: Signal | tuple[Signal, ...] = (),
    uses: Signal | tuple[Signal, ...] = (),
) -> Callable[[Callable[[Pool, Step], int | None]], Chain]:
    """Make a strategy of a function ``(pool, step) → next row or None``; ``start`` orders new chains."""
    return lambda function: Chain(name, _signals(needs), function, start, _signals(uses))


def summary_of(function: Callable[..., Any]) -> str:
    """Return the first line of a docstring."""
    return (function.__doc__ or "").strip().partition("\n")[0]


def _signals(signals: Signal | tuple[Signal, ...]) -> tuple[Signal, ...]:
    given = signals if isinstance(signals, tuple) else (signals,)
    known = get_args(Signal)
    for signal in given:
        if signal not in known:
            raise StrategyError(f"There is no signal {signal!r}. There are: {', '.join(known)}.")
    return given
