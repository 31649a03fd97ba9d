"""Plans: valid whatever the model thinks of itself, and good where it is right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from strategies import StrategyError
from strategies.audits.certify import certify
from strategies.audits.plan import STEPS, chance, expected_errors, plan, thresholds
from strategies.audits.target import Target


def test_the_order_of_testing_is_nested_and_fixed_before_any_answer():
    confidences = np.random.default_rng(1).random(5000).round(2).astype(np.float32)
    sets = thresholds(confidences, Target(0.01, 0.95), 700)
    sizes = [threshold.size for threshold in sets]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == 5000
    assert len(sizes) <= STEPS
    for threshold in sets:
        assert threshold.size == (confidences >= threshold.confidence).sum()
        assert threshold.tolerated == threshold.size // 100


def test_the_first_set_holds_enough_audits_and_few_enough_errors():
    confidences = 1 - np.linspace(0, 0.1, 10_000, dtype=np.float32)  # the k surest: k / 200,000 wrong
    first = thresholds(confidences, Target(0.02, 0.95), 1000)[0].size
    assert 170 <= first / 10 <= 400
    assert thresholds(confidences, Target(0.02, 0.95), 4000)[0].size < first


def test_a_model_that_is_sure_of_everything_is_not_believed_of_the_last_twentieth():
    confidences = 1 - np.linspace(0, 1e-4, 10_000, dtype=np.float32)
    sizes = [threshold.size for threshold in thresholds(confidences, Target(0.01, 0.95), 500)]
    assert sizes[0] <= 9_500
    assert sizes[-1] == 10_000


def test_a_model_that_can_not_claim_more_is_given_most_of_its_frame():
    confidences = np.linspace(0.99, 0.98, 10_000, dtype=np.float32)  # 1.5 % wrong at 1 % tolerated
    found = plan(confidences, Target(0.01, 0.95))
    assert found.size == 9_500
    assert thresholds(confidences[: found.size], Target(0.01, 0.95), found.audits)[0].size == 7_600
    assert plan(confidences - 0.05, Target(0.01, 0.95)).size == 5_000


def test_where_people_label_the_rest_everything_is_the_frame_and_more_is_certified():
    confidences = 1 - np.linspace(0, 0.4, 10_000, dtype=np.float32)  # the k surest: k / 50,000 wrong
    alone, together = plan(confidences, Target(0.1, 0.95)), plan(confidences, Target(0.1, 0.95, of=10_000))
    assert alone.size < 5_000
    assert together.size == 10_000
    assert together.audits < alone.audits * 2
    sets = thresholds(confidences[: together.size], Target(0.1, 0.95, of=10_000), together.audits)
    random, sizes = np.random.default_rng(4), []
    for _ in range(20):
        order = random.permutation(together.size)[: together.audits]
        wrong = random.random(len(order)) < 1 - confidences[order]
        found = certify(sets, confidences[order], wrong, Target(0.1, 0.95, of=10_000)).accepted
        sizes.append(0 if found is None else found.threshold.size)
    assert np.median(sizes) >= 5_000 > alone.size, "the first sets, of which all may be wrong, don't end it"


@pytest.mark.slow
@given(
    some.integers(1, 3000), some.floats(0.005, 0.3), some.sampled_from([0.8, 0.95, 0.99]), some.integers(0, 9)
)
@settings(max_examples=40)
def test_a_plan_is_always_possible(total, error, confidence, seed):
    random = np.random.default_rng(seed)
    confidences = random.beta(1 + 3 * seed, 1, total).astype(np.float32)
    found = plan(confidences, Target(error, confidence))
    assert 1 <= found.audits <= found.size <= total
    assert 0 <= found.chance <= 1
    assert thresholds(confidences, Target(error, confidence), found.audits)[-1].size == total


@pytest.mark.slow
@pytest.mark.parametrize("error", [0.02, 0.05])
def test_a_model_that_knows_itself_is_certified_as_often_as_planned(error):
    random, certified, runs = np.random.default_rng(3), 0, 20
    for _ in range(runs):
        confidences = np.sort(random.beta(50, 1, 10_000).astype(np.float32))[::-1]
        wrong = random.random(10_000) < 1 - confidences
        found = plan(confidences, Target(error, 0.95))
        assert found.size - found.audits > 3000, "worth the audits"
        order = random.permutation(found.size)[: found.audits]
        sets = thresholds(confidences[: found.size], Target(error, 0.95), found.audits)
        certified += certify(sets, confidences[order], wrong[order], Target(error, 0.95)).accepted is not None
    assert certified >= 15


def test_a_model_that_gives_itself_no_chance_gets_the_surer_half():
    found = plan(np.full(1000, 0.6, np.float32), Target(0.02, 0.95))
    assert (found.size, found.chance) == (500, 0.0)


def test_chances_grow_with_audits_and_fall_with_errors():
    grown = [chance(n, 10_000, Target(0.01, 0.95), 0.002) for n in (100, 600, 2000, 8000)]
    assert grown[0] == 0
    assert grown == sorted(grown)
    assert chance(2000, 10_000, Target(0.01, 0.95), 0.02) < 0.01


def test_expected_errors_are_of_the_surest_so_many():
    np.testing.assert_allclose(expected_errors(np.array([1.0, 0.9, 0.5])), [0.0, 0.05, 0.2])


@pytest.mark.parametrize(
    "call",
    [
        lambda: thresholds(np.array([]), Target(0.01, 0.95), 10),
        lambda: thresholds(np.array([0.5, np.nan]), Target(0.01, 0.95), 10),
        lambda: thresholds(np.array([0.5]), Target(1.0, 0.95), 10),
        lambda: thresholds(np.array([0.5]), Target(0.1, 0.0), 10),
    ],
)
def test_impossible_numbers_are_refused(call):
    with pytest.raises(StrategyError):
        call()


@pytest.mark.parametrize("of", [0, 200])
def test_the_first_set_is_large_enough_to_hold_audits(of: int) -> None:
    confidences = np.linspace(0.3, 0.999, 110).astype(np.float32)
    first = thresholds(confidences, Target(0.4, 0.9, of), 24)[0]
    assert 24 * first.size / 110 >= 2, "hardly any audit would fall into it, and where it fails all others do"
