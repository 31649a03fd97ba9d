"""Which labels a fine-tuning run keeps from the network it trains."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.services.learning.finetune import split_holdout


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@given(kinds=st.lists(st.integers(0, 12), min_size=10, max_size=120), seed=st.integers(0, 99))
def test_a_fifth_judges_and_a_tenth_of_the_others_says_when_to_stop(kinds: list[int], seed: int) -> None:
    vectors = unit(np.random.default_rng(seed).normal(size=(len(kinds), 8)))
    held_out, validation = split_holdout(vectors, np.array(kinds), np.ones(len(kinds), bool))
    assert len(held_out) == math.ceil(len(kinds) / 5)
    assert len(validation) == (len(kinds) - len(held_out)) // 10
    assert len({*held_out.tolist(), *validation.tolist()}) == len(held_out) + len(validation)


@given(sizes=st.lists(st.integers(4, 30), min_size=2, max_size=9), seed=st.integers(0, 99))
def test_every_kind_is_set_aside_evenly(sizes: list[int], seed: int) -> None:
    kinds = np.repeat(np.arange(len(sizes)), sizes)
    vectors = unit(np.random.default_rng(seed).normal(size=(len(kinds), 8)))
    held_out = np.bincount(
        kinds[split_holdout(vectors, kinds, np.ones(len(kinds), bool))[0]], minlength=len(sizes)
    )
    assert (np.abs(held_out - np.array(sizes) / 5) < 2).all()


@given(odd=st.integers(0, 19), seed=st.integers(0, 99))
def test_the_only_image_of_its_style_is_for_the_network_to_learn(odd: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(0, 0.05, (40, 8))
    vectors[:20, 0] += 1
    vectors[20:, 1] += 1
    vectors[odd] = -vectors[odd]
    held_out, validation = split_holdout(unit(vectors), np.repeat([0, 1], 20), np.ones(40, bool))
    assert odd not in {*held_out.tolist(), *validation.tolist()}


def test_what_the_current_network_has_not_seen_judges_first() -> None:
    random = np.random.default_rng(0)
    vectors, kinds, seen = unit(random.normal(size=(120, 8))), np.repeat([0, 1], 60), random.random(120) < 0.3
    assert seen[split_holdout(vectors, kinds, np.ones(120, bool))[0]].any()
    held_out, _ = split_holdout(vectors, kinds, ~seen)
    assert not seen[held_out].any()
    assert len(split_holdout(vectors, kinds, np.zeros(120, bool))[0]) == 24
