"""People of numbers: what they answer, and how many seconds it takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from strategies.cost import ACCEPT_SECONDS, CORRECT_SECONDS, Z80, Answer, CostModel
from strategies.pool import StrategyError

CostOf = Callable[[Answer, np.random.Generator], float]
"""Seconds of one answer, without the page's own time."""


@dataclass(frozen=True, slots=True)
class Person:
    """An annotator: how often they are wrong and about what, how often they don't know, how fast they are.

    ``confusion`` (C, C): probabilities of the given answer for each true class; None is never wrong.
    ``pace`` multiplies the seconds of each answer.
    """

    confusion: npt.NDArray[np.float64] | None = None
    dont_know: float = 0.0
    pace: float = 1.0

    def answer(self, truth: int, rng: np.random.Generator) -> int | None:
        """The class this person gives for an image of class ``truth``; None: they skip it."""
        if rng.random() < self.dont_know:
            return None
        if self.confusion is None:
            return truth
        return int(rng.choice(len(self.confusion), p=self.confusion[truth]))


def noisy(classes: int, error: float) -> npt.NDArray[np.float64]:
    """A confusion matrix of people who are wrong this often, about any other class alike.

    Raises StrategyError for an error outside 0…1.
    """
    if not 0 <= error <= 1 or (classes < 2 and error):
        raise StrategyError(f"People can't be wrong in {error:g} of answers with {classes} classes.")
    other = error / max(classes - 1, 1)
    return np.full((classes, classes), other) + np.eye(classes) * (1 - error - other)


def constant(seconds: float) -> CostOf:
    """The same seconds for every answer."""
    return lambda answer, rng: seconds


def published(answer: Answer, rng: np.random.Generator) -> float:
    """What QuickSort/Rush publishes: 0.6 s to confirm an image of the class before, 2.5 s otherwise."""
    return ACCEPT_SECONDS if answer.kind == "accept" and not answer.switch else CORRECT_SECONDS


def learnt(model: CostModel) -> CostOf:
    """Seconds drawn from a model that was fitted on real lead times; each person is one of those in turn."""
    who = model.annotators or (0,)

    def draw(answer: Answer, rng: np.random.Generator) -> float:
        found = model.predict(replace(answer, annotator=who[answer.annotator % len(who)]))
        middle, spread = np.log(found.low * found.high) / 2, np.log(found.high / found.low) / 2 / Z80
        return float(np.exp(middle + spread * rng.standard_normal()))

    return draw
