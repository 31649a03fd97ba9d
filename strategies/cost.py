"""What an answer costs a person: seconds learnt from lead times, with an honest prior before there are any.

The prior starts from published figures: Rush for QuickSort reports 0.6 s to confirm an image of the same
class and 2.5 s where the class changes; the page that shows the next image is on top (``PAGE_SECONDS``).
Seconds are log-normal, as response times are (Luce 1986); annotators differ by a factor of their own,
pooled partially, so that one with few answers is taken for an average one (Gelman & Hill 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from strategies.pool import StrategyError

Floats = npt.NDArray[Any]

PAGE_SECONDS = 0.66
"""From key press to the next image in Label Studio, measured in a browser beside the server, median."""
ACCEPT_SECONDS = 0.6
CORRECT_SECONDS = 2.5
SKIP_SECONDS = 2.5
IDLE_SECONDS = 30.0
"""Lead times above this, or above ten times an annotator's median where that is more, are pauses."""
LEAST_SECONDS, MOST_SECONDS = 0.05, 3600.0
SPREAD = 0.6
"""Standard deviation of log seconds that is assumed before there is data."""
ANNOTATOR_SPREAD = 0.4
Z80 = 1.2816
"""Standard deviations on either side that hold 80 % of a normal distribution."""
KINDS = ("accept", "correct", "skip")
FEATURES = (*KINDS, "doubt", "distance", "switch", "session")
_PRIOR_MEAN = np.array([*np.log([ACCEPT_SECONDS, CORRECT_SECONDS, SKIP_SECONDS]), 0.0, 0.0, 0.0, 0.0])
_PRIOR_SPREAD = np.array([0.7, 0.7, 0.7, 0.5, 0.5, 0.5, 0.2])


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a person, as far as its cost may depend on it.

    ``kind``: the suggestion was accepted or corrected, or the image skipped · ``probability`` of the
    suggestion · ``distance`` to the image before, 1 − cosine · ``switch``: another class than the image
    before · ``session``: minutes since the annotator began.
    """

    kind: str
    probability: float = 1.0
    distance: float = 0.0
    switch: bool = False
    session: float = 0.0
    annotator: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected seconds, and the interval that holds 80 % of such answers."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How good predictions were for answers that they were not learnt from.

    ``coverage`` should be 0.8; ``error`` is the mean of predicted − real seconds, ``absolute_error`` of its
    size; ``idle`` answers were left out.
    """

    answers: int
    idle: int
    coverage: float
    error: float
    absolute_error: float


class CostModel:
    """Seconds per answer; learnt in closed form, in milliseconds for a hundred thousand answers."""

    def __init__(self) -> None:
        self._weights, self._covariance = _PRIOR_MEAN.copy(), np.diag(_PRIOR_SPREAD**2)
        self._annotators: dict[int, int] = {}
        self._noise = SPREAD
        self._told = np.ones(len(FEATURES), bool)
        self.calibration: Calibration | None = None

    def fit(self, answers: Sequence[Answer], seconds: Sequence[float]) -> CostModel:
        """Learn from lead times in seconds; pauses, zeros and what is no number are left out.

        Raises StrategyError for lists of different length or an unknown kind of answer.
        """
        if len(answers) != len(seconds):
            raise StrategyError(f"{len(answers)} answers have {len(seconds)} lead times.")
        times = np.array(seconds, np.float64)
        kept = busy([answer.annotator for answer in answers], times)
        idle = len(answers) - int(kept.sum())
        answers, times = [a for a, k in zip(answers, kept, strict=True) if k], times[kept]
        self.calibration = None
        names = sorted({answer.annotator for answer in answers})
        self._annotators = {name: len(FEATURES) + n for n, name in enumerate(names)}
        x, y = self._matrix(answers), np.log(times)
        held = np.arange(len(y)) % 5
        if len(y) >= 20:
            guesses = [self._solve(x[held != fold], y[held != fold]) for fold in range(5)]
            mean, spread = np.empty(len(y)), np.empty(len(y))
            for fold, (weights, covariance, noise) in enumerate(guesses):
                mine = x[held == fold]
                mean[held == fold] = mine @ weights
                spread[held == fold] = np.sqrt(((mine @ covariance) * mine).sum(1) + noise**2)
            error = np.exp(mean + spread**2 / 2) - times
            inside = np.abs(y - mean) <= Z80 * spread
            self.calibration = Calibration(
                len(y), idle, float(inside.mean()), float(error.mean()), float(np.abs(error).mean())
            )
        self._weights, self._covariance, self._noise = self._solve(x, y)
        self._told = np.ones(x.shape[1], bool)
        if len(x):  # what no answer told of must not widen the predictions for answers that tell of it
            self._told[len(KINDS) : len(FEATURES)] = x[:, len(KINDS) : len(FEATURES)].any(axis=0)
        return self

    @property
    def annotators(self) -> tuple[int, ...]:
        """Who is known by answers of their own."""
        return tuple(self._annotators)

    def _solve(self, x: Floats, y: Floats) -> tuple[Floats, Floats, float]:
        """Bayesian linear regression, three times with Huber weights so that outliers count less."""
        more = x.shape[1] - len(FEATURES)
        mean = np.concatenate([_PRIOR_MEAN, np.zeros(more)])
        precision = np.diag(1 / np.concatenate([_PRIOR_SPREAD, np.full(more, ANNOTATOR_SPREAD)]) ** 2)
        weight, noise = np.ones(len(y)), SPREAD
        found, covariance = mean, np.linalg.inv(precision)
        for _ in range(3):
            inverse = precision + (x * (weight / noise**2)[:, None]).T @ x
            covariance = np.linalg.inv(inverse)
            found = covariance @ (precision @ mean + x.T @ (weight * y) / noise**2)
            rest = y - x @ found
            # The prior spread counts as ten answers.
            noise = float(np.sqrt((10 * SPREAD**2 + (weight * rest**2).sum()) / (10 + weight.sum())))
            weight = np.minimum(1.0, 2.0 * noise / np.maximum(np.abs(rest), 1e-9))
        return np.asarray(found), np.asarray(covariance), noise

    def _matrix(self, answers: Sequence[Answer]) -> Floats:
        x = np.zeros((len(answers), len(FEATURES) + len(self._annotators)))
        for row, answer in enumerate(answers):
            if answer.kind not in KINDS:
                raise StrategyError(f"There is no kind of answer {answer.kind!r}: use {', '.join(KINDS)}.")
            x[row, KINDS.index(answer.kind)] = 1
            x[row, len(KINDS) : len(FEATURES)] = (
                1 - np.clip(answer.probability, 0, 1),
                np.clip(answer.distance, 0, 2),
                answer.switch,
                np.log1p(np.clip(answer.session, 0, 1e4)),
            )
            if answer.annotator in self._annotators:
                x[row, self._annotators[answer.annotator]] = 1
        return np.nan_to_num(x)

    def predict(self, answer: Answer) -> Estimate:
        """Seconds that this answer will take."""
        mean, spread = self._log(self._matrix([answer]))
        return Estimate(
            float(np.exp(mean[0] + spread[0] ** 2 / 2)),
            float(np.exp(mean[0] - Z80 * spread[0])),
            float(np.exp(mean[0] + Z80 * spread[0])),
        )

    def expected(
        self, probability: npt.ArrayLike, distance: npt.ArrayLike = 0.0, *, annotator: int = 0
    ) -> Floats:
        """Expected seconds (n,) of images not yet shown, by the probability of their suggestion.

        A suggestion is right as often as its calibrated probability says: accepted then, else corrected.
        """
        p = np.clip(np.nan_to_num(np.asarray(probability, np.float64)), 0, 1)
        d = np.broadcast_to(np.nan_to_num(np.asarray(distance, np.float64)), p.shape)
        seconds = []
        for kind in ("accept", "correct"):
            x = np.repeat(self._matrix([Answer(kind, annotator=annotator)]), p.size, axis=0)
            x[:, FEATURES.index("doubt")], x[:, FEATURES.index("distance")] = 1 - p.ravel(), d.ravel()
            x[:, FEATURES.index("switch")] = float(kind == "correct")
            mean, spread = self._log(x)
            seconds.append(np.exp(mean + spread**2 / 2).reshape(p.shape))
        return np.asarray(p * seconds[0] + (1 - p) * seconds[1])

    def _log(self, x: Floats) -> tuple[Floats, Floats]:
        x = x * self._told
        return x @ self._weights, np.sqrt(((x @ self._covariance) * x).sum(axis=1) + self._noise**2)


def busy(annotators: Sequence[int], seconds: Floats) -> npt.NDArray[np.bool_]:
    """Which lead times (n,) are work: not zero, no pause (``IDLE_SECONDS``), a number."""
    good = (seconds >= LEAST_SECONDS) & (seconds <= MOST_SECONDS)
    who = np.asarray(annotators)
    for name in np.unique(who[good]) if good.any() else ():
        mine = good & (who == name)
        good[mine & (seconds > max(IDLE_SECONDS, 10 * np.median(seconds[mine])))] = False
    return good


def labels_per_hour(seconds: npt.ArrayLike, page_seconds: float = PAGE_SECONDS) -> float:
    """Answers an hour at these seconds each, the page's own time included; pauses are not trimmed here."""
    times = np.asarray(seconds, np.float64)
    return float(3600 / (times.mean() + page_seconds)) if times.size else 0.0


def seconds_saved(model: CostModel, answers: Sequence[Answer]) -> float:
    """Seconds that suggestions saved: without them every accepted one would have been a correction."""
    return sum(
        model.predict(replace(answer, kind="correct")).mean - model.predict(answer).mean
        for answer in answers
        if answer.kind == "accept"
    )


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the next labels bring: points of accuracy (0…1) gained, with an 80 % interval, and minutes."""

    labels: int
    gain: float
    low: float
    high: float
    minutes: float


def outlook(
    labels: Sequence[int],
    accuracy: Sequence[float],
    seconds_per_label: float,
    more: int = 100,
    page_seconds: float = PAGE_SECONDS,
) -> Outlook:
    """Extrapolate held-out accuracy to ``more`` labels: stop or continue?

    Error falls as a power of the number of labels (Hestness et al. 2017): a line through log error against
    log labels, later rounds counting more. Raises StrategyError below three rounds.
    """
    n, error = np.asarray(labels, np.float64), 1 - np.asarray(accuracy, np.float64)
    good = np.isfinite(error) & (n > 0)
    n, error = n[good], np.maximum(error[good], 1e-4)
    if len(np.unique(n)) < 3:
        raise StrategyError(f"{len(np.unique(n))} rounds say nothing of the next: at least 3 are needed.")
    x, y, weight = np.log(n), np.log(error), np.sqrt(n / n.max())
    a = np.stack([np.ones_like(x), x], 1) * weight[:, None]
    (level, slope), *_ = np.linalg.lstsq(a, y * weight, rcond=None)
    slope = min(float(slope), 0.0)
    rest = (y - level - slope * x) * weight
    spread = float(np.sqrt((rest**2).sum() / max(len(x) - 2, 1))) / np.sqrt(len(x))
    now = float(np.exp(level + slope * np.log(n.max())))
    factor = ((n.max() + more) / n.max()) ** slope
    gains = sorted(max(0.0, now * (1 - factor * np.exp(k * Z80 * spread))) for k in (-1, 0, 1))
    minutes = more * (seconds_per_label + page_seconds) / 60
    return Outlook(more, float(gains[1]), float(gains[0]), float(gains[2]), float(minutes))
