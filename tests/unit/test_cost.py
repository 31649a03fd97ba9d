"""The model of annotator seconds: what it starts from, what it learns, what it says about itself."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import StrategyError
from strategies.cost import Answer, CostModel, labels_per_hour, outlook, seconds_saved

TRUE = {"accept": 0.9, "correct": 3.0, "skip": 2.0}


def worked(n: int, pace: dict[int, float], seed: int = 0) -> tuple[list[Answer], list[float]]:
    """Answers of people with a pace of their own, and log-normal seconds around the truth."""
    rng = np.random.default_rng(seed)
    answers = [
        Answer(str(rng.choice(list(TRUE), p=[0.7, 0.25, 0.05])), annotator=int(rng.choice(list(pace))))
        for _ in range(n)
    ]
    noise = np.exp(0.4 * rng.standard_normal(n))
    return answers, [TRUE[a.kind] * pace[a.annotator] * e for a, e in zip(answers, noise, strict=True)]


def median(model: CostModel, kind: str, annotator: int = 1) -> float:
    found = model.predict(Answer(kind, annotator=annotator))
    return math.sqrt(found.low * found.high)


def test_before_data_it_says_what_was_published() -> None:
    model = CostModel()
    assert median(model, "accept") == pytest.approx(0.6)
    assert median(model, "correct") == pytest.approx(2.5)
    assert model.calibration is None
    sure, unsure = model.expected([1.0, 0.3])
    assert sure < unsure


def test_it_finds_the_seconds_of_each_kind_and_the_pace_of_each_person() -> None:
    model = CostModel().fit(*worked(2000, {1: 1.0, 2: 2.0}))
    for kind, seconds in TRUE.items():
        assert median(model, kind, 1) == pytest.approx(seconds, rel=0.15)
        assert median(model, kind, 2) == pytest.approx(2 * seconds, rel=0.15)
    # Somebody new is taken for an average person.
    assert median(model, "accept", 1) < median(model, "accept", 99) < median(model, "accept", 2)


def test_its_interval_holds_four_fifths_of_new_answers() -> None:
    model = CostModel().fit(*worked(1000, {1: 1.0}))
    assert model.calibration is not None
    assert model.calibration.coverage == pytest.approx(0.8, abs=0.06)
    answers, seconds = worked(1000, {1: 1.0}, seed=1)
    inside = [
        model.predict(a).low <= s <= model.predict(a).high for a, s in zip(answers, seconds, strict=True)
    ]
    assert np.mean(inside) == pytest.approx(0.8, abs=0.06)


def test_pauses_change_nothing() -> None:
    answers, seconds = worked(500, {1: 1.0})
    clean = median(CostModel().fit(answers, seconds), "accept")
    for n in range(0, 500, 10):
        seconds[n] = 600.0
    model = CostModel().fit(answers, seconds)
    assert median(model, "accept") == pytest.approx(clean, rel=0.05)
    assert model.calibration is not None
    assert model.calibration.idle == 50


def test_few_answers_move_it_a_little() -> None:
    one = median(CostModel().fit([Answer("accept")], [6.0]), "accept", 0)
    many = median(CostModel().fit([Answer("accept")] * 200, [6.0] * 200), "accept", 0)
    assert 0.6 < one < many < 6.1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["accept", "correct", "skip"]),
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(allow_nan=True, allow_infinity=True),
        ),
        max_size=30,
    )
)
def test_whatever_was_measured_it_predicts_positive_seconds(rows: list[tuple[str, float, float]]) -> None:
    model = CostModel().fit([Answer(kind, doubt) for kind, doubt, _ in rows], [s for *_, s in rows])
    found = model.predict(Answer("accept"))
    assert 0 < found.low < found.mean < math.inf
    assert found.low < found.high < math.inf
    assert (model.expected([0.0, 0.5, 1.0, math.nan]) > 0).all()


def test_wrong_input_is_named() -> None:
    with pytest.raises(StrategyError, match="2 answers have 1 lead times"):
        CostModel().fit([Answer("accept")] * 2, [1.0])
    with pytest.raises(StrategyError, match="no kind of answer 'maybe'"):
        CostModel().predict(Answer("maybe"))
    with pytest.raises(StrategyError, match="2 rounds say nothing"):
        outlook([10, 20], [0.5, 0.6], 1.0)


def test_what_suggestions_save_is_what_corrections_would_have_cost() -> None:
    model = CostModel()
    each = model.predict(Answer("correct")).mean - model.predict(Answer("accept")).mean
    assert seconds_saved(model, [Answer("accept"), Answer("correct"), Answer("accept")]) == pytest.approx(
        2 * each
    )
    assert labels_per_hour([1.34, 1.34], page_seconds=0.66) == pytest.approx(1800)
    assert labels_per_hour([]) == 0


def test_the_outlook_goes_on_with_the_learning_curve() -> None:
    labels = [50, 100, 200, 400]
    found = outlook(labels, [1 - 2 * n**-0.5 for n in labels], seconds_per_label=1.34, more=100)
    assert found.gain == pytest.approx(2 * (400**-0.5 - 500**-0.5), rel=0.01)
    assert found.low <= found.gain <= found.high
    assert found.minutes == pytest.approx(100 * 2.0 / 60)
    assert outlook(labels, [0.9, 0.9, 0.9, 0.9], 1.0).gain == pytest.approx(0, abs=1e-9)


def test_what_the_answers_do_not_tell_of_costs_nothing_more() -> None:
    """A project's lead times say nothing of distance and session; simulated answers do."""
    noise = np.random.default_rng(0).lognormal(0, 0.3, 600)
    model = CostModel().fit([Answer("accept")] * 600, list(2.0 * noise))
    told = model.predict(Answer("accept", probability=0.2, distance=1.0, session=120.0))
    assert told == model.predict(Answer("accept"))
    assert told.mean == pytest.approx(2.0 * noise.mean(), rel=0.05)
