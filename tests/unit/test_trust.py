from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import StrategyError
from strategies.audits.trust import margins, trusted


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def two_classes(each: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around two axes, and the class of each."""
    noise = np.random.default_rng(0).standard_normal((2 * each, 8)) * 0.1
    labels = np.repeat([0, 1], each)
    return unit(np.eye(8)[labels] + noise), labels


def test_a_confident_suggestion_amid_another_class_is_trusted_least() -> None:
    vectors, labels = two_classes()
    confidences = np.linspace(0.6, 0.9, 100).astype(np.float32)
    confidences[7] = 0.99
    labels[7] = 1  # lies with class 0
    assert confidences.argmax() == 7
    found = trusted(confidences, labels, [vectors])
    assert found[7] <= np.sort(found)[1]  # beside the least confident one


def test_an_unsure_suggestion_in_the_middle_of_its_class_stays_unsure() -> None:
    vectors, labels = two_classes()
    confidences = np.full(100, 0.9, np.float32)
    middle = int(margins(vectors, labels).argmax())
    confidences[middle] = 0.3
    assert trusted(confidences, labels, [vectors])[middle] == np.float32(0.3)


def test_margins_are_those_to_the_nearest_other_class() -> None:
    vectors = unit(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]))
    found = margins(vectors, np.array([0, 1, 2, 2]))
    third = unit(np.array([[0.5**0.5, 0.5**0.5, 1]]))[0]
    expected = [1 - third[0], 1 - third[1], third[2] - 0, vectors[3] @ third - 0.5**0.5]
    assert found == pytest.approx(expected, abs=1e-6)


@given(st.data())
def test_confidences_are_handed_out_anew_none_is_lost_and_without_spaces_none_moves(
    data: st.DataObject,
) -> None:
    n = data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    confidences = rng.integers(0, 5, n).astype(np.float32) / 4
    labels = rng.integers(0, data.draw(st.integers(1, 4)), n)
    vectors = np.zeros((n, 3), np.float32) if data.draw(st.booleans()) else unit(rng.standard_normal((n, 3)))
    found = trusted(confidences, labels, [vectors])
    assert sorted(found) == sorted(confidences)
    assert (trusted(confidences, labels, []) == confidences).all()
    if not vectors.any():  # nothing can be told from constant vectors
        assert (found == confidences).all()


def test_what_does_not_fit_together_or_is_no_number_is_named() -> None:
    vectors, labels = two_classes(2)
    with pytest.raises(StrategyError, match="4 confidences need as many"):
        trusted(np.ones(4, np.float32), labels, [vectors[:3]])
    with pytest.raises(StrategyError, match="finite"):
        trusted(np.array([1, np.nan, 1, 1], np.float32), labels, [vectors])
