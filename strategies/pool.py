"""What a query strategy sees: the pool, its signals, one step of a chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[Any]
Signal = Literal["probabilities", "vectors", "regions", "labels"]


ARRAYS = {
    "available": (1, "b"),
    "labelled": (1, "b"),
    "answers": (1, "iu"),
    "vectors": (2, "f"),
    "probabilities": (2, "fiu"),
    "clusters": (1, "iu"),
    "density": (1, "f"),
    "head": (2, "f"),
    "seconds": (1, "fiu"),
    "agreed": (1, "fb"),
}
"""Dimensions and numpy kinds of the arrays of a pool."""


class StrategyError(ValueError):
    """A strategy can't answer, or answered with something that is no order."""


@dataclass(frozen=True, slots=True)
class Pool:
    """All items of a project with every signal there is, one row per item.

    vectors (n, d) unit length · available (n,) may be asked about · labelled (n,) has a label ·
    answers (n,) number of the label, -1 for none · probabilities (n, C) · clusters (n,) region of each item,
    from 0 · density (n,) mean similarity to its nearest items · head (n, h) the classifier's own vectors ·
    seconds (n,) expected annotator seconds · agreed (n,) 1 where a suggestion made without the label was the
    label, 0 where not, NaN where unknown · classes: the names of the columns of ``probabilities``.

    What a project doesn't have yet is None. Only ``available`` rows of ``probabilities`` and ``seconds`` are
    read. StrategyError where an array does not have one row per item, or holds something else.
    """

    vectors: Floats | None
    available: Mask
    labelled: Mask
    answers: Rows
    probabilities: Floats | None = None
    clusters: npt.NDArray[np.int32] | None = None
    density: Floats | None = None
    nearest: Callable[[int, int], Rows] | None = None
    head: Floats | None = None
    seconds: Floats | None = None
    agreed: Floats | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, (dimensions, kinds) in ARRAYS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if np.ndim(value) != dimensions or len(value) != len(self.available):
                wanted = f"({len(self.available)}, …)" if dimensions == 2 else f"({len(self.available)},)"
                raise StrategyError(f"{name} must have the shape {wanted}, not {np.shape(value)}.")
            if np.asarray(value).dtype.kind not in kinds:
                wanted = {"b": "bool", "iu": "whole numbers"}.get(kinds, "numbers")
                raise StrategyError(f"{name} must hold {wanted}, not {np.asarray(value).dtype}.")
        if self.probabilities is not None and not self.probabilities.shape[1]:
            raise StrategyError("probabilities must have a column per class, and have none.")

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
        """Return the signals of ``needs`` that this pool does not have.

        ``labels`` is there where some of the available items are labelled.
        """
        has: dict[Signal, Callable[[], bool]] = {
            "probabilities": lambda: self.probabilities is not None,
            "vectors": lambda: self.vectors is not None,
            "regions": lambda: self.clusters is not None and self.density is not None,
            "labels": lambda: bool((self.available & self.labelled).any()),
        }
        return [signal for signal in needs if not has[signal]()]

    def check(self, signals: Sequence[Signal]) -> None:
        """Raise StrategyError where one of these signals, as far as it is read, is no number."""
        read: dict[str, Scores | None] = {}
        if "probabilities" in signals and self.probabilities is not None:
            read["probabilities"] = self.probabilities[self.available]
        if "vectors" in signals:
            read |= {"vectors": self.vectors, "head": self.head}
        if "regions" in signals:
            read["density"] = self.density
            if self.clusters is not None and len(self) and self.clusters.min() < 0:
                raise StrategyError(f"clusters must count from 0; the smallest is {self.clusters.min()}.")
        if self.seconds is not None:
            read["seconds"] = self.seconds[self.available]
        for name, values in read.items():
            with np.errstate(invalid="ignore", over="ignore"):
                total = 0.0 if values is None else float(values.sum())
            if not np.isfinite(total):
                raise StrategyError(f"{name} hold NaN or infinity. Leave the signal out until it is known.")

    def per_class(self, count: int) -> Rows:
        """Return how many labelled items hold each of the answers 0 … ``count`` - 1."""
        given = self.answers[self.labelled]
        return np.bincount(given[(given >= 0) & (given < count)], minlength=count).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Step:
    """One answer inside a chain: the row just labelled, the chain's earlier rows, newest first, and a guess.

    ``guess(row)`` gives the answer that would be suggested for a row, as a number, and its confidence.
    ``ranked`` are the best available rows of the strategy's last order, best first.
    """

    row: int
    history: Sequence[int]
    guess: Callable[[int], tuple[int, float]]
    ranked: Sequence[int] = ()


def probabilities_of(pool: Pool) -> Floats:
    """Return the pool's probabilities (n, C); StrategyError where it has none."""
    if pool.probabilities is None:
        raise StrategyError("This strategy needs probabilities, and the pool has none.")
    return pool.probabilities


def vectors_of(pool: Pool) -> Floats:
    """Return the pool's vectors (n, d); StrategyError where it has none."""
    if pool.vectors is None:
        raise StrategyError("This strategy needs vectors, and the pool has none.")
    return pool.vectors


def regions_of(pool: Pool) -> tuple[npt.NDArray[np.int32], Floats]:
    """Return the region (n,) and the density (n,) of each item; StrategyError where there is no map."""
    if pool.clusters is None or pool.density is None:
        raise StrategyError("This strategy needs regions, and the pool has none.")
    return pool.clusters, pool.density
