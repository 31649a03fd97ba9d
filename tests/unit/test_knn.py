import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.domain.generation import normalise
from ml_backend.numerics.exact_knn import nearest
from ml_backend.numerics.knn import vote, vote_all


def test_no_neighbour_gives_zeros():
    assert not vote(np.zeros((2, 0)), np.zeros((2, 0), int), 3, multiple=False).any()
    assert not vote(np.full((1, 4), 0.5), np.full((1, 4), -1), 3, multiple=False).any()
    assert not vote(np.full((1, 4), -np.inf), np.ones((1, 4, 3)), 3, multiple=True).any()
    empty = np.zeros((0, 8), np.float32)
    assert vote_all(np.ones((2, 8), np.float32), empty, np.zeros(0, int), 3, 5, multiple=False).tolist() == [
        [0, 0, 0],
        [0, 0, 0],
    ]


def test_a_nearer_neighbour_outvotes_a_farther_one():
    votes = vote(np.array([[0.9, 0.5]]), np.array([[1, 0]]), 2, multiple=False)[0]
    assert votes[1] > 0.6


def test_agreement_of_many_is_surer_than_the_word_of_one():
    one = vote(np.array([[0.9]]), np.array([[0]]), 2, multiple=False)[0, 0]
    ten = vote(np.full((1, 10), 0.9), np.zeros((1, 10), int), 2, multiple=False)[0, 0]
    assert 0.5 < one < ten < 1


def test_classes_of_a_multiple_choice_are_voted_on_one_by_one():
    targets = np.array([[[1, 1, 0], [1, 0, 0], [1, 0, 0]]])
    votes = vote(np.full((1, 3), 0.8), targets, 3, multiple=True)[0]
    assert votes[0] > 0.8
    assert votes[1] < 0.5
    assert votes[2] < votes[1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 6), st.booleans())
def test_votes_are_probabilities_whatever_the_order_of_neighbours(seed, k, classes, multiple):
    random = np.random.default_rng(seed)
    similarities = random.uniform(-1, 1, (5, k)).astype(np.float32)
    targets = random.integers(0, 2, (5, k, classes)) if multiple else random.integers(-1, classes, (5, k))
    votes = vote(similarities, targets, classes, multiple=multiple)
    assert votes.shape == (5, classes)
    assert ((votes >= 0) & (votes <= 1)).all()
    if not multiple:
        assert votes.sum(axis=1) == pytest.approx((targets >= 0).any(axis=1).astype(float), abs=1e-5)
    turned = vote(similarities[:, ::-1], targets[:, ::-1], classes, multiple=multiple)
    np.testing.assert_allclose(votes, turned, atol=1e-5)


@pytest.mark.parametrize("multiple", [False, True])
def test_voting_in_blocks_equals_voting_by_full_sort(multiple):
    random = np.random.default_rng(0)
    queries = normalise(random.standard_normal((2100, 8)))
    teachers = normalise(random.standard_normal((300, 8)))
    targets = random.integers(0, 2, (300, 4)) if multiple else random.integers(0, 4, 300)
    similarities = queries @ teachers.T
    order = np.argsort(-similarities, axis=1)[:, :7]
    wanted = vote(np.take_along_axis(similarities, order, 1), targets[order], 4, multiple=multiple)
    found = vote_all(queries, teachers, targets, 4, 7, multiple=multiple)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 300, 3001])
def test_nearest_equals_a_full_sort(rows):
    random = np.random.default_rng(rows)
    vectors = normalise(random.standard_normal((rows, 8)))
    queries = normalise(random.standard_normal((50, 8)))
    indices, cosines = nearest(queries, vectors, 15)
    wanted = -np.sort(-(queries @ vectors.T), axis=1)[:, :15]
    np.testing.assert_allclose(cosines, wanted, atol=1e-6)
    found = np.take_along_axis(queries @ vectors.T, indices, 1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_each_row_is_its_own_nearest_even_among_duplicates():
    rows = normalise(np.ones((40, 4)))
    indices, _ = nearest(rows, rows, 5, np.arange(40))
    assert indices[:, 0].tolist() == list(range(40))
