"""The same image in several tasks, or saved again, is one image to every split."""

from __future__ import annotations

import numpy as np
import pytest

from ml_backend.adapters.models.trainer_torch import TorchTrainer
from ml_backend.domain.generation import normalise
from ml_backend.numerics import copies
from ml_backend.numerics.copies import groups_of
from ml_backend.services.learning.maps import fit_pca
from ml_backend.services.learning.train import folds, train


def images(count: int, noise: float, seed: int = 0, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    kinds = np.arange(count) % 8
    centres = np.random.default_rng(99).standard_normal((8, width))
    return centres[kinds] + noise * rng.standard_normal((count, width)), kinds


@pytest.mark.parametrize("noise", [0.02, 0.5, 3.0])
@pytest.mark.parametrize("slight", [0.0, 0.0005])
def test_copies_are_found_and_nothing_else(noise: float, slight: float) -> None:
    rows, kinds = images(80, noise)
    twice = np.concatenate(
        [rows, rows[:30] + slight * noise * np.random.default_rng(1).standard_normal((30, 64))]
    )
    found = groups_of(normalise(twice), np.concatenate([kinds, kinds[:30]]))
    assert found.tolist() == [*range(80), *range(30)]


@pytest.mark.parametrize("step", [0.05, 0.01])
def test_a_film_that_changes_bit_by_bit_is_not_one_image(step: float) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal(64) + step * rng.standard_normal((300, 64)).cumsum(axis=0)
    assert len(np.unique(groups_of(normalise(rows), np.zeros(300, np.int64)))) > 250


def test_of_very_many_images_copies_are_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "LARGEST", 50)
    rows, kinds = images(80, 1.0)
    found = groups_of(normalise(np.concatenate([rows, rows])), np.concatenate([kinds, kinds]))
    assert found.tolist() == [*range(80), *range(80)]


@pytest.mark.parametrize("multiple", [False, True])
def test_a_fold_holds_all_tasks_of_an_image_or_none(multiple: bool) -> None:
    groups = np.repeat(np.arange(0, 240, 3), 3)
    y = np.repeat(np.arange(80) % 8, 3)
    parts = folds(np.eye(8, dtype=np.int64)[y] if multiple else y, groups, multiple=multiple)
    assert sorted(np.concatenate(parts).tolist()) == list(range(240))
    assert all(len(part) == 3 * len(np.unique(groups[part])) for part in parts)


def test_without_copies_folds_are_what_they_were() -> None:
    y = np.random.default_rng(3).integers(0, 4, 90)
    same = zip(folds(y, np.arange(90), multiple=False), folds(y, multiple=False), strict=True)
    assert all(np.array_equal(one, other) for one, other in same)


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [False, True])
def test_a_round_thinks_no_better_of_itself_because_each_image_is_there_three_times(multiple: bool) -> None:
    rows, kinds = images(80, 2.6)
    unseen, truth = images(4000, 2.6, seed=7)
    rows, kinds = np.repeat(rows, 3, axis=0).astype(np.float16), np.repeat(kinds, 3)
    outcome = train(
        rows,
        np.eye(8, dtype=np.int64)[kinds] if multiple else kinds,
        list(range(240)),
        classes=[str(n) for n in range(8)],
        multiple=multiple,
        pca=fit_pca(rows),
        trainer=TorchTrainer("cpu"),
        previous=None,
        number=1,
        backbone="b",
    )
    head = outcome.generation.head
    said = head.probabilities(head.encode(unseen), multiple=multiple)
    really = (
        ((said >= 0.5) == np.eye(8, dtype=bool)[truth]).mean()
        if multiple
        else (said.argmax(axis=1) == truth).mean()
    )
    assert really < 0.97
    assert outcome.manifest["held_out"]["head"]["accuracy"] == pytest.approx(really, abs=0.08)
