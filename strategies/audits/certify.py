"""How much of what a model says may be taken over unseen: exact bounds from a random audit.

A *frame* is a fixed, finite set of items, each with a suggestion and a confidence that were written down
before anybody was asked about them. Its items are audited in uniformly random order, without replacement:
a person answers, and the suggestion turns out right or wrong. Nothing else may count as an audit, least of
all what an active strategy asked about, which is no random sample.

*One set, any number of looks.* Whether at most ``tolerated`` of ``population`` suggestions are wrong is
tested with the prior-posterior ratio of Waudby-Smith & Ramdas (2020), "Confidence sequences for sampling
without replacement": the likelihood of the audits under a beta-binomial mixture over their likelihood where
``M`` items are wrong. Under the true ``M`` it is a martingale that starts at one, so by Ville's inequality
it ever reaches 1/δ with probability at most δ: people may look after every audit, stop when they like and
go on again. It is exact for finite populations. Against one look at a number of audits that was fixed in
advance it takes about a fifth more audits where none is wrong and a third more where a few are
(``audits_needed`` gives both).

*Which set.* The threshold is chosen with the audits that also test it, which needs a correction. The sets
{confidence ≥ t} are put in one fixed order before the first answer, from surer to less sure, and tested in
that order each at the full δ until the first that fails: fixed-sequence testing, as in Learn then Test
(Angelopoulos, Bates, Candès, Jordan & Lei 2021). To accept a set wrongly the first wrong one of the order
must be accepted, which is one test: so the guarantee holds for all sets together, at any time, and nothing
is paid for their number. Since the first failure ends it, the order starts where success is likeliest
(``plan.thresholds``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, gammaln
from scipy.stats import beta, hypergeom

from strategies.audits.target import Target, Threshold
from strategies.base import StrategyError

Array = npt.NDArray[Any]

MIXTURE = 4.0
"""Errors are expected to be a ``MIXTURE``-th of those tolerated; it decides about power, not validity."""


@dataclass(frozen=True, slots=True)
class Tested:
    """What the audits say about one set; ``level`` is the chance of so much evidence were it too wrong."""

    threshold: Threshold
    audited: int
    wrong: int
    level: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """Sets in the order of testing up to the first that fails; ``accepted`` is the largest that passed."""

    accepted: Tested | None
    failed: Tested | None
    tested: tuple[Tested, ...]


def binomial_upper(wrong: int, audited: int, confidence: float) -> float:
    """Return the upper bound of an error rate after one look, for a boundless population.

    Clopper & Pearson (1934): the rate at which at most ``wrong`` errors among ``audited`` have probability
    1 - confidence.
    """
    _check(wrong, audited, None, confidence)
    return 1.0 if wrong == audited else float(beta.ppf(confidence, wrong + 1, audited - wrong))


def hypergeometric_upper(wrong: int, audited: int, population: int, confidence: float) -> int:
    """Return the largest number of wrong items in ``population`` that one look doesn't rule out.

    The exact bound for sampling without replacement (Konijn 1973): the largest M under which at most
    ``wrong`` errors among ``audited`` have a probability above 1 - confidence.
    """
    _check(wrong, audited, population, confidence)
    low, high = wrong, population - audited + wrong
    while low < high:  # the probability falls with M
        middle = (low + high + 1) // 2
        if hypergeom.cdf(wrong, population, middle, audited) > 1 - confidence:
            low = middle
        else:
            high = middle - 1
    return low


def evidence(wrong: Array, audited: Array, population: int, tolerated: int) -> npt.NDArray[np.float64]:
    """Return log e-values (n,) against more than ``tolerated`` of ``population`` items being wrong.

    ``wrong`` and ``audited`` (n,) are counts as the audits come in, in random order without replacement.
    Each e-value is the least prior-posterior ratio over all ``M > tolerated``: the probability that
    exp(evidence) ever reaches 1/δ is at most δ where more than ``tolerated`` are wrong. Infinite where the
    audits rule that out for certain.
    """
    k, n = np.asarray(wrong, np.float64), np.asarray(audited, np.float64)
    if population < 1 or tolerated >= population:
        return np.full(k.shape, np.inf)
    a = 1.0
    b = MIXTURE * population / max(tolerated, 0.5)
    # The likelihood has one peak in M, so over M > tolerated it is largest there or at the boundary.
    with np.errstate(divide="ignore", invalid="ignore"):
        peak = np.where(n > 0, np.floor(k * (population + 1) / np.maximum(n, 1)), 0)
    least = np.clip(np.maximum(tolerated + 1, peak), 0, population)
    impossible = population - least < n - k
    m = np.where(impossible, population - (n - k), least)
    likelihood = _falling(m, k) + _falling(population - m, n - k) - _falling(np.float64(population), n)
    mixture = betaln(a + k, b + n - k) - betaln(a, b)
    return np.where(impossible, np.inf, mixture - likelihood)


def _falling(x: Any, k: Any) -> Any:
    """Log of x (x - 1) … (x - k + 1)."""
    return gammaln(x + 1) - gammaln(x - k + 1)


def audits_needed(
    target: Target, expected_error: float, population: int, *, audited: int = 0, wrong: int = 0
) -> int | None:
    """Return how many audits in all certify a set of ``population`` items, if errors come as expected.

    That is: ``expected_error`` of the audits wrong (rounded up), beginning with ``wrong`` among ``audited``,
    looking as often as one likes. None where auditing everything would find too many.
    """
    _check(wrong, audited, population, target.confidence)
    n = np.arange(audited, population + 1)
    k = np.minimum(wrong + np.ceil((n - audited) * expected_error - 1e-9), n)
    passed = evidence(k, n, population, target.tolerated(population)) >= target.proof
    return int(n[passed.argmax()]) if passed.any() else None


def audits_once(target: Target, expected_error: float, population: int) -> int | None:
    """Return ``audits_needed`` for a single look at a number of audits that was fixed in advance.

    The exact hypergeometric test: what repeated looks cost is the difference.
    """
    _check(0, 0, population, target.confidence)
    tolerated = target.tolerated(population)
    for wrong in range(tolerated + 1):
        low, high = wrong + 1, population
        while low < high:
            middle = (low + high) // 2
            if hypergeometric_upper(wrong, middle, population, target.confidence) <= tolerated:
                high = middle
            else:
                low = middle + 1
        if np.ceil(low * expected_error - 1e-9) <= wrong:
            return low
    return None


def certify(sets: Sequence[Threshold], confidences: Array, wrong: Array, target: Target) -> Certificate:
    """Test the sets in their order and return the largest that the audits certify.

    ``confidences`` and ``wrong`` (n,) of the audits, in the random order in which they were drawn, without a
    gap. With probability at least ``target.confidence``, at no time during the audits does the accepted set
    hold more than ``Threshold.tolerated`` wrong suggestions. What was certified once stays so.
    """
    confidences, wrong = np.asarray(confidences), np.asarray(wrong, bool)
    if confidences.shape != wrong.shape:
        raise StrategyError(f"{len(confidences)} confidences and {len(wrong)} answers don't belong together.")
    tested: list[Tested] = []
    accepted: Tested | None = None
    for threshold in sets:
        mine = wrong[confidences >= threshold.confidence]
        if len(mine) > threshold.size:
            raise StrategyError(f"{len(mine)} audits in a set of {threshold.size} items.")
        counts = np.arange(len(mine) + 1), np.concatenate([[0], np.cumsum(mine)])
        best = float(evidence(counts[1], counts[0], threshold.size, threshold.tolerated).max())
        result = Tested(threshold, len(mine), int(mine.sum()), float(np.exp(-max(best, 0.0))))
        tested.append(result)
        if best < target.proof:
            return Certificate(accepted, result, tuple(tested))
        accepted = result
    return Certificate(accepted, None, tuple(tested))


def overall_error(accepted: int, bound: float, human: int, human_error: float = 0.0) -> float:
    """Return the bound for all labels, people's and the machine's together.

    People's own are right, or wrong in ``human_error`` of all cases. ``bound`` compares the machine with
    people's answers, so where these err the machine's labels may be wrong as often on top of it.
    """
    return bound * accepted / max(accepted + human, 1) + human_error


def _check(wrong: int, audited: int, population: int | None, confidence: float) -> None:
    if not 0 <= wrong <= audited or (population is not None and audited > population):
        raise StrategyError(f"{wrong} wrong of {audited} audits of {population or 'many'} items: impossible.")
    if not 0 < confidence < 1:
        raise StrategyError(f"A confidence of {confidence} is outside of (0, 1).")
