"""What a certificate is to say; apart from the statistics, which need more than numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.base import StrategyError


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be certified, with ``confidence``: of every ``of`` labels at most ``error`` are wrong.

    By default (``of`` 0) these are the suggestions of the certified set. Where ``of`` counts all labels that
    there will be, people's included, a set may hold all the errors that they may: what people say is right.
    Raises StrategyError for numbers outside of (0, 1).
    """

    error: float
    confidence: float
    of: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.error < 1 or not 0 < self.confidence < 1:
            raise StrategyError(
                f"An error of {self.error} and a confidence of {self.confidence} must be inside of (0, 1)."
            )

    def tolerated(self, size: int) -> int:
        """How many of a set of ``size`` suggestions may be wrong."""
        return int(np.floor(self.error * max(self.of, size) + 1e-9))

    def rate(self, size: int) -> float:
        """The share of a set of ``size`` that may be wrong."""
        return self.error * max(self.of, size) / size

    @property
    def proof(self) -> float:
        """The log e-value from which on a set is certified."""
        return float(-np.log1p(-self.confidence))


@dataclass(frozen=True, slots=True)
class Threshold:
    """One set {item confidence ≥ ``confidence``} of the frame: its size, and how many may be wrong in it."""

    confidence: float
    size: int
    tolerated: int
