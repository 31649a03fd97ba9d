"""Plans an audit: which sets to test in which order, and how many audits that will probably take.

A plan is made of what is known before the first answer, of sizes and the model's own confidences, so it may
be as wrong as these: that costs audits, or finds less to take over, but never breaks the promise of
``certify``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from strategies.audits.certify import MIXTURE, audits_needed, evidence
from strategies.audits.target import Target, Threshold
from strategies.base import StrategyError

Array = npt.NDArray[Any]

STEPS = 100
"""Sets that are tested one after the other, at most: their number costs nothing, and the finer they are the
fewer images that would have passed are left to people."""
POWER = 0.9
"""Chance of success that a plan is made for."""
HOPELESS = 0.05
"""Chances below this say that the confidences are no probabilities."""
SLACK = 0.03
"""Error beyond what is tolerated that a model may expect and still be given most of its frame: calibrated on
a hundred answers it can't claim much less, however right it is."""
DOUBT = 0.1
"""Errors on top of those that the model expects, in what is tolerated: models are too sure of themselves."""
TAIL, TAIL_DOUBT = 0.05, 0.5
"""The least sure share of a frame, and the errors in it that are expected beyond the model's, as a share of
those tolerated in the frame: where the first set fails all others do, so it had better be without them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Draw ``audits`` from the ``size`` surest items; ``chance`` of success by the model's own guess."""

    size: int
    audits: int
    chance: float


def thresholds(confidences: Array, target: Target, audits: int) -> list[Threshold]:
    """Return the sets to test, in order: at most STEPS, each holding the ones before it.

    ``confidences`` (N,) of the whole frame, ``audits`` planned in it. The first set is the one that passes
    likeliest if the confidences are right: smaller ones hold too few audits, larger ones too many errors.
    The last is the frame. Where no set has a chance the surer half is the first, or four fifths where the
    confidences nearly do. Where the target is of all labels the first is the surer half, or the largest that
    still has half of the best chance.
    """
    total = len(confidences)
    if not total or not np.isfinite(confidences).all():
        raise StrategyError(f"{total} confidences, all of them finite numbers, are no set to certify.")
    falling = np.sort(np.asarray(confidences))[::-1]
    rates = expected_errors(falling)
    tail = np.clip(np.arange(1, total + 1) - (1 - TAIL) * total, 0, None) / (TAIL * total)
    rates += TAIL_DOUBT * target.rate(total) * tail * total / np.arange(1, total + 1)
    sizes = np.unique(np.linspace(total / STEPS, total, STEPS).round().clip(1).astype(np.int64))
    chances = [
        chance(_at_least(audits, size / total), size, target, float(rates[size - 1]))
        if target.tolerated(size) < size
        else 0.0  # so small that all of it may be wrong; the sets after it need not have a chance
        for size in sizes.tolist()
    ]
    best, most = max(chances), max(len(sizes) * 4 // 5 - 1, 0)
    first = most if rates[sizes[most] - 1] <= target.rate(int(sizes[most])) + SLACK else len(sizes) // 2
    if best > HOPELESS:
        if target.of:  # as many errors are tolerated in each set, so small ones only lack audits
            first = min(max(n for n, found in enumerate(chances) if found >= best / 2), len(sizes) // 2)
        else:
            first = next(n for n, found in enumerate(chances) if found >= best - 0.01)
    sets: dict[float, Threshold] = {}
    for size in sizes[first:]:
        threshold = float(falling[size - 1])
        whole = int((falling >= threshold).sum())  # equal confidences stay together
        sets[threshold] = Threshold(threshold, whole, target.tolerated(whole))
    return list(sets.values())


def _at_least(audits: int, share: float) -> int:
    """How many of the audits fall into a set of this share of the frame, all but surely (two deviations)."""
    return max(int(audits * share - 2 * (audits * share * (1 - share)) ** 0.5), 0)


def plan(confidences: Array, target: Target) -> Plan:
    """Return from how many of the surest items to draw how many audits, to save people most answers.

    ``confidences`` (N,) of all open items; ``chance`` is that of the set the plan was made for. Where they
    give no set a chance, the surer half is the frame (all but the last twentieth where they nearly do), and
    there are audits for the surer half of that with a quarter of the tolerated errors. Where people label
    the rest the frame is everything, and audits are a tenth of it at most, or what a flawless model needs.
    """
    total = len(confidences)
    falling = np.sort(np.asarray(confidences))[::-1]
    rates = expected_errors(falling)
    best: Plan | None = None
    sizes = np.concatenate([np.geomspace(max(total / 50, 1), total, 20), np.linspace(total / 2, total, 11)])
    for size in np.unique(sizes.astype(np.int64).clip(1)).tolist():
        for audits in np.unique(np.geomspace(1, size, 40).astype(np.int64)).tolist():
            if size - audits <= (0 if best is None else best.size - best.audits):
                break
            found = chance(audits, size, target, float(rates[size - 1]))
            if found >= POWER:
                best = Plan(size, audits, found)
                break
    if best is None:
        most = max(int((1 - TAIL) * total), 1)
        size = most if rates[most - 1] <= target.rate(most) + SLACK else max(total // 2, 1)
        half = max(size // 2, 1)
        needed = audits_needed(target, target.rate(half) / MIXTURE, half) or size
        best = Plan(size, min(2 * needed, size), 0.0)
    if not target.of:
        return best
    # As dense among all: where people label the rest, no audit of it was labour lost.
    flawless = audits_needed(target, 0.0, total) or total
    most = max(total // 10, round(1.2 * flawless))  # a model that thinks too little of itself needs fewer
    return Plan(total, min(round(best.audits * total / best.size), most, total), best.chance)


def expected_errors(falling: Array) -> npt.NDArray[np.float64]:
    """Return the share of wrong items (N,) that a model expects among its 1, 2, … N surest ones."""
    return np.cumsum(1 - falling.astype(np.float64)) / np.arange(1, len(falling) + 1)


def chance(audits: int, size: int, target: Target, expected_error: float) -> float:
    """Return the probability that ``audits`` among ``size`` items certify them (binomial errors)."""
    rate = min(1.0, expected_error + DOUBT * target.rate(size))
    most = _most_wrong(audits, size, target)
    return float(binom.cdf(most, audits, rate)) if most >= 0 else 0.0


@lru_cache(maxsize=100_000)  # every look at a certificate asks for the same sizes again
def _most_wrong(audits: int, size: int, target: Target) -> int:
    """The most wrong audits that still certify the set; -1 where it can't be certified by so many."""
    tolerated = target.tolerated(size)
    low, high = -1, min(audits, tolerated)
    while low < high:
        middle = (low + high + 1) // 2
        if float(evidence(np.array([middle]), np.array([audits]), size, tolerated)[0]) >= target.proof:
            low = middle
        else:
            high = middle - 1
    return low
