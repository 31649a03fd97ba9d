"""The contract of every kind of control: what it writes it reads, and answers survive as numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.controls import Choices
from ml_backend.domain.model import Suggestion

CLASSES = ("cat", "dog", "bird")
SINGLE = Choices("animal", "image", "image", CLASSES)
SEVERAL = Choices("animal", "image", "image", CLASSES, multiple=True)
sets = st.lists(st.sampled_from(CLASSES), unique=True).map(tuple)


@given(sets)
def test_what_is_written_is_read(labels: tuple[str, ...]) -> None:
    assert SEVERAL.read(SEVERAL.write(Suggestion(labels, 0.5))) == labels


def test_another_controls_answer_is_not_read() -> None:
    other = Choices("mood", "image", "image", ("calm", "wild"))
    result = [*SINGLE.write(Suggestion(("cat",), 0.5)), *other.write(Suggestion(("wild",), 0.5))]
    assert (SINGLE.read(result), other.read(result)) == (("cat",), ("wild",))


@given(sets)
def test_several_labels_survive_as_a_target(labels: tuple[str, ...]) -> None:
    target = SEVERAL.target(labels)
    assert target.shape == SEVERAL.shape == (3,)
    assert set(SEVERAL.labels(target)) == set(labels)


@given(st.sampled_from(CLASSES))
def test_one_label_survives_as_a_target(label: str) -> None:
    target = SINGLE.target((label,))
    assert target.shape == SINGLE.shape == ()
    assert SINGLE.labels(target) == (label,)


@pytest.mark.parametrize("control", [SINGLE, SEVERAL])
def test_names_that_are_no_class_are_left_out(control: Choices) -> None:
    assert (control.target(("vanished",)) == np.full(control.shape, control.no_target)).all()


def test_no_label_is_an_answer_where_several_may_be_right_and_none_elsewhere() -> None:
    assert SEVERAL.answer(()) == ()
    assert SINGLE.answer(()) is None


@given(sets, sets)
def test_equal_answers_are_equal_in_any_order(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert (SEVERAL.answer(one) == SEVERAL.answer(other)) == (set(one) == set(other))
    assert SEVERAL.agrees(one, other) == (set(one) == set(other))
    assert SEVERAL.agrees(one, one[::-1])


def test_a_path_of_one_is_a_label_because_allow_nested_may_have_been_on() -> None:
    region = {
        "type": "choices",
        "from_name": "animal",
        "value": {"choices": [["cat"], "dog", ["a", "b"], [1]]},
    }
    assert SEVERAL.read([region]) == ("cat", "dog")


def test_results_are_read_under_present_names() -> None:
    control = SEVERAL.renamed({"kitten": "cat", "puppy": "whelp", "whelp": "dog", "x": "y", "y": "x"})
    written = Choices("animal", "image", "image", ("kitten", "puppy", "x", "cat"), multiple=True)
    said = control.read(written.write(Suggestion(("kitten", "puppy", "x", "cat"), 0.5)))
    assert said == ("cat", "dog", "x")
    assert control.lost(said) == ("x",)
    assert not control.teaches(said)
    assert control.teaches(("puppy",))
