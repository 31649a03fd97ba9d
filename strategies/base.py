"""What a query strategy sees and what its author writes: pool, signals, the three decorators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[Any]
Signal = Literal["probabilities", "vectors", "regions"]


class StrategyError(ValueError):
    """A strategy can't answer, or answered with something that is no order."""


@dataclass(frozen=True, slots=True)
class Pool:
    """All items of a project with every signal there is, one row per item.

    vectors (n, d) unit length · available (n,) may be asked about · labelled (n,) has a label ·
    answers (n,) number of the label, -1 for none · probabilities (n, C) · clusters (n,) region of each item ·
    density (n,) mean similarity to its nearest items. What a project doesn't have yet is None.
    """

    vectors: Floats | None
    available: Mask
    labelled: Mask
    answers: Rows
    probabilities: Floats | None = None
    clusters: npt.NDArray[np.int32] | None = None
    density: Floats | None = None
    nearest: Callable[[int, int], Rows] | None = None

    def __len__(self) -> int:
        return len(self.available)

    def neighbours(self, row: int, k: int) -> Rows:
        """Return the at most ``k`` nearest available rows of ``row``, nearest first."""
        if self.nearest is not None:
            return self.nearest(row, k)
        if self.vectors is None:
            return np.empty(0, np.int64)
        similarity = np.where(self.available, self.vectors @ self.vectors[row], -np.inf)
        similarity[row] = -np.inf
        k = min(k, int(np.isfinite(similarity).sum()))
        best = np.argpartition(-similarity, k - 1)[:k] if k else np.empty(0, np.int64)
        return best[np.argsort(-similarity[best], kind="stable")]

    def missing(self, needs: Sequence[Signal]) -> list[Signal]:
        """Return the signals of ``needs`` that this pool does not have."""
        has = {
            "probabilities": self.probabilities is not None,
            "vectors": self.vectors is not None,
            "regions": self.clusters is not None and self.density is not None,
        }
        return [signal for signal in needs if not has[signal]]


@dataclass(frozen=True, slots=True)
class Step:
    """One answer inside a chain: the row just labelled, the chain's earlier rows, newest first, and a guess.

    ``guess(row)`` gives the answer that would be suggested for a row, as a number, and its confidence.
    """

    row: int
    history: Sequence[int]
    guess: Callable[[int], tuple[int, float]]


class QueryStrategy(Protocol):
    """Orders the pool: what is most worth asking about comes first."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def summary(self) -> str: ...  # noqa: D102
    @property
    def needs(self) -> tuple[Signal, ...]: ...  # noqa: D102

    def order(self, pool: Pool, k: int, rng: np.random.Generator) -> Rows:
        """Return at most ``k`` available rows, best first."""


def _summary(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]


def top(scores: Scores, available: Mask, k: int, rng: np.random.Generator) -> Rows:
    """Return the ``k`` available rows of the highest scores, ties in random order; StrategyError for NaN."""
    rows = np.flatnonzero(available)
    values = np.asarray(scores, np.float64)[rows]
    if np.isnan(values).any():
        raise StrategyError(f"{int(np.isnan(values).sum())} of {len(values)} scores are NaN.")
    k = min(k, len(rows))
    if k == 0:
        return np.empty(0, np.int64)
    if k < len(rows) // 4:
        cut = np.partition(values, len(values) - k)[len(values) - k]
        rows, values = rows[values >= cut], values[values >= cut]
    shuffled = rng.permutation(len(rows))
    return rows[shuffled[np.argsort(-values[shuffled], kind="stable")]][:k]


@dataclass(frozen=True, slots=True)
class Acquisition:
    """A strategy that scores every item by itself; higher is more worth asking."""

    name: str
    needs: tuple[Signal, ...]
    score: Callable[[Pool], Scores]

    @property
    def summary(self) -> str:
        """The promise of the strategy in one sentence."""
        return _summary(self.score)

    def order(self, pool: Pool, k: int, rng: np.random.Generator) -> Rows:
        """Return the ``k`` available rows of the highest scores."""
        scores = self.score(pool)
        if np.shape(scores) != (len(pool),):
            raise StrategyError(f"{self.name} gave scores of shape {np.shape(scores)}, not {(len(pool),)}.")
        return top(scores, pool.available, k, rng)


@dataclass(frozen=True, slots=True)
class Batch:
    """A strategy that chooses items together."""

    name: str
    needs: tuple[Signal, ...]
    choose: Callable[[Pool, int, np.random.Generator], Rows]

    @property
    def summary(self) -> str:
        """The promise of the strategy in one sentence."""
        return _summary(self.choose)

    def order(self, pool: Pool, k: int, rng: np.random.Generator) -> Rows:
        """Return what the strategy chose; StrategyError where it chose twice or what is not available."""
        k = min(k, int(pool.available.sum()))
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

    @property
    def summary(self) -> str:
        """The promise of the strategy in one sentence."""
        return _summary(self.step)

    def order(self, pool: Pool, k: int, rng: np.random.Generator) -> Rows:
        """Return where new chains start."""
        return self.start.order(pool, k, rng)

    def follow(self, pool: Pool, step: Step) -> int | None:
        """Return the available row that comes next, or None where the chain ends."""
        row = self.step(pool, step)
        if row is not None and not pool.available[row]:
            raise StrategyError(f"{self.name} followed with row {row}, which is not available.")
        return row


def acquisition(
    name: str, *, needs: Signal | tuple[Signal, ...] = ()
) -> Callable[[Callable[[Pool], Scores]], Acquisition]:
    """Make a strategy of a function ``pool → scores (n,)``, higher being more worth asking."""
    return lambda function: Acquisition(name, _signals(needs), function)


def batch(
    name: str, *, needs: Signal | tuple[Signal, ...] = ()
) -> Callable[[Callable[[Pool, int, np.random.Generator], Rows]], Batch]:
    """Make a strategy of a function ``(pool, k, rng) → ordered rows``."""
    return lambda function: Batch(name, _signals(needs), function)


def chain(
    name: str, *, start: QueryStrategy, needs: Signal | tuple[Signal, ...] = ()
) -> Callable[[Callable[[Pool, Step], int | None]], Chain]:
    """Make a strategy of a function ``(pool, step) → next row or None``; ``start`` orders new chains."""
    return lambda function: Chain(name, _signals(needs), function, start)


def _signals(needs: Signal | tuple[Signal, ...]) -> tuple[Signal, ...]:
    return needs if isinstance(needs, tuple) else (needs,)
