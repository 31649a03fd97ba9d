"""The statistics of certificates: exact against scipy and enumeration, and their promise under peeking."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy.stats import binom, hypergeom

from strategies import StrategyError
from strategies.audits.certify import (
    audits_needed,
    audits_once,
    binomial_upper,
    certify,
    evidence,
    hypergeometric_upper,
    overall_error,
)
from strategies.audits.plan import thresholds
from strategies.audits.target import Target, Threshold


@given(some.data(), some.integers(1, 400), some.sampled_from([0.8, 0.95, 0.99]))
def test_the_binomial_bound_is_the_rate_that_is_just_not_ruled_out(data, audited, confidence):
    wrong = data.draw(some.integers(0, audited - 1))
    bound = binomial_upper(wrong, audited, confidence)
    assert binom.cdf(wrong, audited, bound) == pytest.approx(1 - confidence, rel=1e-6)


@given(some.data(), some.integers(1, 300), some.sampled_from([0.8, 0.95, 0.99]))
def test_the_hypergeometric_bound_is_the_largest_count_that_is_not_ruled_out(data, population, confidence):
    audited = data.draw(some.integers(0, population))
    wrong = data.draw(some.integers(0, audited))
    bound = hypergeometric_upper(wrong, audited, population, confidence)
    largest = population - audited + wrong
    assert wrong <= bound <= largest
    assert bound == wrong or hypergeom.cdf(wrong, population, bound, audited) > 1 - confidence
    assert bound == largest or hypergeom.cdf(wrong, population, bound + 1, audited) <= 1 - confidence
    if audited and not wrong:  # where most are wrong it may lie above
        assert bound / population <= binomial_upper(0, audited, confidence) + 1e-9


def ever_too_much(population: int, wrong: int, tolerated: int, delta: float) -> float:
    """The exact probability that the evidence ever reaches 1/delta, over all orders of the audits."""
    n = np.arange(population + 1)
    alive = {0: 1.0}  # wrong audits so far → probability of not having crossed
    crossed = 0.0
    for audited in n[1:]:
        following: dict[int, float] = {}
        for k, chance in alive.items():
            hit = (wrong - k) / (population - audited + 1)
            for more, share in ((1, hit), (0, 1 - hit)):
                if share <= 0:
                    continue
                found = evidence(np.array([k + more]), np.array([audited]), population, tolerated)
                if found[0] >= -np.log(delta):
                    crossed += chance * share
                else:
                    following[k + more] = following.get(k + more, 0.0) + chance * share
        alive = following
    return crossed


@pytest.mark.parametrize(
    ("population", "tolerated", "wrong"), [(40, 3, 4), (40, 3, 6), (60, 5, 6), (60, 0, 1), (50, 24, 25)]
)
def test_looking_after_every_audit_breaks_the_promise_no_more_often_than_said(population, tolerated, wrong):
    assert ever_too_much(population, wrong, tolerated, 0.1) <= 0.1


@pytest.mark.slow
def test_a_single_look_bound_would_break_its_promise_under_peeking():
    """Why the evidence is needed at all: the exact fixed-sample bound, looked at after every audit."""
    random = np.random.default_rng(5)
    population, tolerated, broken = 1000, 50, 0
    thresholds = [max((k for k in range(60) if hypergeom.cdf(k, 1000, 51, n) <= 0.1), default=-1)
                  for n in range(1, 400)]  # fmt: skip
    for _ in range(400):
        wrong = np.cumsum(random.permutation(population)[:399] <= tolerated)
        broken += bool((wrong <= thresholds).any())
    assert broken / 400 > 0.15


@given(some.integers(2, 500), some.data())
def test_more_wrong_audits_are_never_more_evidence(population, data):
    tolerated = data.draw(some.integers(0, population - 1))
    audited = data.draw(some.integers(1, population))
    wrong = np.arange(audited + 1)
    found = evidence(wrong, np.full(audited + 1, audited), population, tolerated)
    assert not np.isnan(found).any()
    assert (found[1:] <= found[:-1] + 1e-9).all() or np.isinf(found).any()
    assert (found[wrong > tolerated] <= 1e-9).all()


def test_auditing_everything_settles_it():
    for wrong, passes in ((0, True), (5, True), (6, False)):
        assert (evidence(np.array([wrong]), np.array([100]), 100, 5)[0] == np.inf) == passes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sure", "unsure"), [(0.051, 0.051), (0.045, 0.06), (0.02, 0.2), (0.04, 0.07)], ids=str
)
def test_certificates_are_violated_no_more_often_than_promised(sure, unsure):
    """The accepted set is chosen by the same audits, which are looked at after every single one."""
    random, delta, runs = np.random.default_rng(7), 0.1, 1500
    rates = np.where(np.arange(1500) < 750, sure, unsure)
    confidences = (1 - rates - 1e-6 * np.arange(1500)).astype(np.float32)
    sets = thresholds(confidences, Target(0.05, 1 - delta), 300)
    violated = accepted = 0
    for _ in range(runs):
        wrong = random.random(1500) < rates
        order = random.permutation(1500)[:500]
        found = certify(sets, confidences[order], wrong[order], Target(0.05, 1 - delta)).accepted
        if found is not None:
            accepted += 1
            violated += wrong[confidences >= found.threshold.confidence].sum() > found.threshold.tolerated
    assert violated <= delta * runs + 3 * np.sqrt(delta * (1 - delta) * runs)
    assert sure > 0.03 or accepted > 0.3 * runs, "a good model is to be certified"


@pytest.mark.slow
def test_errors_of_all_labels_are_certified_no_more_often_wrongly_than_promised():
    """Where people label the rest, a set may hold all the errors that all labels may."""
    random, delta, runs, total = np.random.default_rng(8), 0.1, 400, 1500
    rates = np.linspace(0.0, 0.3, total)
    confidences = (1 - rates).astype(np.float32)
    target = Target(0.05, 1 - delta, of=2000)
    sets = thresholds(confidences, target, 300)
    assert {threshold.tolerated for threshold in sets} == {100}
    violated, sizes = 0, []
    for _ in range(runs):
        wrong = random.random(total) < rates
        order = random.permutation(total)[:300]
        found = certify(sets, confidences[order], wrong[order], target).accepted
        if found is not None:
            sizes.append(found.threshold.size)
            violated += wrong[confidences >= found.threshold.confidence].sum() > 100
    assert violated <= delta * runs + 3 * np.sqrt(delta * (1 - delta) * runs)
    assert np.mean(sizes) > 700, "half of them are wrong in 75 cases"


def test_once_certified_stays_certified_whatever_comes_after():
    confidences = np.linspace(0, 1, 2000, dtype=np.float32)
    random = np.random.default_rng(0)
    order = random.permutation(2000)
    sets = thresholds(confidences, Target(0.05, 0.95), 150)
    right = np.zeros(400, bool)
    before = certify(sets, confidences[order[:200]], right[:200], Target(0.05, 0.95))
    right[200:] = True
    after = certify(sets, confidences[order[:400]], right, Target(0.05, 0.95))
    assert before.accepted is not None
    assert after.accepted is not None
    assert after.accepted.threshold.size >= before.accepted.threshold.size


def test_testing_ends_at_the_first_set_that_fails():
    sets = [Threshold(0.9, 1000, 50), Threshold(0.5, 2000, 100), Threshold(0.0, 3000, 150)]
    confidences = np.concatenate([np.full(200, 0.95), np.full(200, 0.6), np.full(200, 0.1)])
    wrong = np.concatenate([np.zeros(200), np.ones(200), np.zeros(200)]).astype(bool)
    order = np.random.default_rng(0).permutation(600)
    confidences, wrong = confidences[order], wrong[order]
    found = certify(sets, confidences, wrong, Target(0.05, 0.95))
    assert found.accepted.threshold == sets[0]
    assert found.failed.threshold == sets[1]
    assert [tested.threshold for tested in found.tested] == sets[:2]
    assert certify(sets, confidences[:0], wrong[:0], Target(0.05, 0.95)).accepted is None


@pytest.mark.parametrize("population", [500, 10_000, 100_000])
@pytest.mark.parametrize("expected", [0.0, 0.0025])
def test_the_audits_said_to_be_needed_are_just_enough(population, expected):
    needed = audits_needed(Target(0.01, 0.95), expected, population)
    threshold = Threshold(0.0, population, Target(0.01, 0.95).tolerated(population))

    def passes(audits):
        wrong = np.zeros(audits, bool)
        wrong[: int(np.ceil(audits * expected - 1e-9))] = True  # the worst order: errors first
        return certify([threshold], np.ones(audits), wrong, Target(0.01, 0.95)).accepted is not None

    assert passes(needed)
    assert not passes(needed - 1)
    assert audits_once(Target(0.01, 0.95), expected, population) < needed < population


def test_what_a_single_look_needs_is_the_textbook_number():
    assert audits_once(Target(0.01, 0.95), 0.0, 10**7) == 299  # (1 - 0.01) ** 299 <= 0.05


def test_audits_that_came_in_count():
    from_start = audits_needed(Target(0.01, 0.95), 0.0, 10_000)
    assert audits_needed(Target(0.01, 0.95), 0.0, 10_000, audited=200) == from_start
    assert audits_needed(Target(0.01, 0.95), 0.0, 10_000, audited=200, wrong=2) > from_start
    assert audits_needed(Target(0.01, 0.95), 0.5, 10_000) is None


def test_the_error_of_all_labels_is_weighed():
    assert overall_error(900, 0.01, 100) == pytest.approx(0.009)
    assert overall_error(900, 0.01, 100, 0.05) == pytest.approx(0.059)  # audits were judged by people who err
    assert overall_error(0, 0.0, 0) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: binomial_upper(3, 2, 0.9),
        lambda: hypergeometric_upper(0, 11, 10, 0.9),
        lambda: hypergeometric_upper(0, 5, 10, 1.0),
        lambda: certify([Threshold(0.0, 5, 0)], np.zeros(3), np.zeros(2), Target(0.05, 0.9)),
        lambda: certify([Threshold(0.0, 2, 0)], np.ones(3), np.zeros(3), Target(0.05, 0.9)),
    ],
)
def test_impossible_numbers_are_refused(call):
    with pytest.raises(StrategyError):
        call()
