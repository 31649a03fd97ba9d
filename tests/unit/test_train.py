import json

import numpy as np
import pytest

from ml_backend.adapters.models.trainer_torch import TorchTrainer
from ml_backend.domain.generation import Head
from ml_backend.numerics.figures import agreement, figures, fit_temperature
from ml_backend.services.learning.maps import fit_pca
from ml_backend.services.learning.train import folds, train

pytestmark = pytest.mark.slow

CLASSES = ("cat", "dog", "owl", "yak")
WIDTH = 96


def images(n, seed=0, noise=1.0):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((4, WIDTH))
    y = random.integers(0, 4, n)
    return (centres[y] + noise * random.standard_normal((n, WIDTH))).astype(np.float16), y


def learn(features, y, previous=None, *, ids=None, multiple=False, number=1, trainer=None, classes=CLASSES):
    return train(
        features,
        y,
        list(range(len(features))) if ids is None else ids,
        classes=classes,
        multiple=multiple,
        pca=fit_pca(images(300, 5)[0]),
        trainer=trainer or TorchTrainer("cpu"),
        previous=previous,
        number=number,
        backbone="b",
    )


class Broken:
    """A trainer whose heads have learned nothing."""

    def fit(self, features, targets, *, multiple, pca, seed=0):
        head = TorchTrainer("cpu", steps=0).fit(features, targets, multiple=multiple, pca=pca)
        return Head(head.mean, head.weight[:, ::-1].copy(), head.prototypes, head.bias, 6.0, 1.0)


@pytest.mark.parametrize(("n", "classes"), [(0, 4), (1, 4), (9, 4), (40, 1)])
def test_too_few_labels_or_classes_give_neighbours_only(n, classes):
    features, y = images(n)
    outcome = learn(features, np.minimum(y, classes - 1))
    assert outcome.generation.head is None
    assert outcome.generation.suggester == "knn-raw"
    assert outcome.generation.space == "raw"
    assert "too few" in outcome.manifest["why"]


def test_held_out_accuracy_is_that_on_images_never_seen():
    features, y = images(400, noise=3.0)
    outcome = learn(features, y)
    unseen, truth = images(4000, seed=1, noise=3.0)
    generation = outcome.generation
    said = generation.head.probabilities(generation.head.encode(unseen), multiple=False)
    really = (said.argmax(axis=1) == truth).mean()
    assert really < 0.97
    assert outcome.manifest["held_out"]["head"]["accuracy"] == pytest.approx(really, abs=0.06)
    assert figures(said, truth, multiple=False)["ece"] < 0.08


def test_labels_that_mean_nothing_look_like_it():
    features, _ = images(300)
    outcome = learn(features, np.random.default_rng(123).integers(0, 4, 300))
    for way in outcome.manifest["held_out"].values():
        assert way["accuracy"] < 0.4


def test_the_manifest_is_json_and_says_what_was_chosen_and_why():
    features, y = images(100)
    outcome = learn(features, y)
    manifest = json.loads(json.dumps(outcome.manifest))
    assert set(manifest["held_out"]) == {"knn-raw", "knn-head", "head", "blend"}
    assert set(manifest["held_out"]["head"]) == {"accuracy", "log_loss", "ece"}
    assert set(manifest["purity"]) == {"raw", "head"}
    assert manifest["suggester"] == outcome.generation.suggester
    best = max(way["accuracy"] for way in manifest["held_out"].values())
    assert manifest["held_out"][manifest["suggester"]]["accuracy"] >= best - 0.1
    assert outcome.generation.head.temperature == manifest["temperature"]


def test_classes_without_a_label_are_left_out():
    features, y = images(100)
    kept = y != 1
    outcome = learn(features[kept], y[kept])
    assert outcome.generation.classes == ("cat", "owl", "yak")
    assert outcome.generation.head.prototypes.shape[0] == 3


def test_a_class_with_one_label_does_not_stop_training():
    features, y = images(60)
    y = np.where(y == 3, 0, y)
    y[0] = 3
    outcome = learn(features, y)
    assert outcome.generation.classes == CLASSES
    assert np.isfinite(outcome.manifest["held_out"]["head"]["log_loss"])


def test_multiple_choices_are_learned_and_judged():
    features, y = images(200)
    targets = np.stack([y == 0, y < 2, y % 2 == 0, np.zeros(200)], axis=1).astype(np.int64)
    outcome = learn(features, targets, multiple=True)
    assert outcome.generation.classes == ("cat", "dog", "owl")
    assert outcome.manifest["held_out"]["head"]["accuracy"] > 0.9
    json.dumps(outcome.manifest)


def test_a_broken_head_does_not_replace_a_good_one():
    features, y = images(400, noise=2.0)
    good = learn(features[:200], y[:200]).generation
    outcome = learn(features, y, good, number=2, trainer=Broken())
    assert outcome.generation is None
    assert "worse than generation 1" in outcome.manifest["why"]


def test_a_broken_head_does_not_replace_a_good_one_even_where_no_label_is_new():
    features, y = images(200, noise=2.0)
    good = learn(features, y).generation
    assert learn(features, y, good, number=2, trainer=Broken()).generation is None


def test_harder_images_do_not_stop_a_head_that_is_no_worse():
    easy, y = images(200)
    hard, z = images(200, seed=1, noise=4.0)
    first = learn(easy, y).generation
    second = learn(np.concatenate([easy, hard]), np.concatenate([y, z]), first, number=2).generation
    assert second is not None
    before, now = (g.manifest["held_out"]["head"]["accuracy"] for g in (first, second))
    assert now < before - 0.01
    assert second.number == 2


@pytest.mark.parametrize("change", ["labels", "classes"])
def test_what_can_not_be_compared_is_published(change):
    features, y = images(200, noise=2.0)
    good = learn(features, y).generation
    y = (y + 1) % 4 if change == "labels" else np.where(y == 3, 2, y)
    assert learn(features, y, good, number=2, trainer=Broken()).generation is not None


def test_more_labels_are_better_and_published():
    features, y = images(600, noise=4.0)
    first = learn(features[:60], y[:60]).generation
    second = learn(features, y, first, number=2).generation
    assert second.number == 2


@pytest.mark.parametrize("n", [10, 57, 2500])
def test_folds_hold_out_each_image_once_and_every_class_evenly(n):
    y = np.random.default_rng(0).integers(0, 4, n)
    parts = folds(y, multiple=False)
    rows = np.concatenate(parts)
    assert len(set(rows.tolist())) == len(rows) == (n if n <= 2000 else n // 5)
    for part in parts:
        counts = np.bincount(y[part], minlength=4)
        assert (np.abs(counts - np.bincount(y, minlength=4) / 5) < 2).all()


def test_temperature_undoes_overconfidence():
    random = np.random.default_rng(0)
    logits = random.standard_normal((4000, 4)) * 2
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (odds.cumsum(axis=1) > random.random((4000, 1))).argmax(axis=1)
    assert fit_temperature(logits * 3, truth, multiple=False) == pytest.approx(3, rel=0.15)
    each = (random.random((4000, 4)) < 1 / (1 + np.exp(-logits))).astype(int)
    assert fit_temperature(logits * 3, each, multiple=True) == pytest.approx(3, rel=0.15)


def test_a_head_that_was_never_wrong_is_not_taken_to_be_sure_of_everything():
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, 60)
    logits = 10 * np.eye(4)[truth] + random.standard_normal((60, 4))
    for said, right, multiple in ((logits, truth, False), (logits - 5, np.eye(4, dtype=int)[truth], True)):
        warm = said / fit_temperature(said, right, multiple=multiple)
        odds = 1 / (1 + np.exp(-warm)) if multiple else np.exp(warm) / np.exp(warm).sum(axis=1, keepdims=True)
        assert 0.95 < odds[np.arange(60), truth].mean() < 0.995


def test_figures_of_sure_and_right_and_of_sure_and_wrong():
    sure = np.array([[1, 0], [0, 1]], np.float32)
    assert figures(sure, np.array([0, 1]), multiple=False) == {"accuracy": 1, "log_loss": 0, "ece": 0}
    wrong = figures(sure, np.array([1, 0]), multiple=False)
    assert wrong["accuracy"] == 0
    assert wrong["ece"] == 1
    assert wrong["log_loss"] == pytest.approx(-np.log(1e-3))


def test_agreement_is_one_in_pure_groups_and_the_overlap_of_label_sets():
    vectors = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    assert (agreement(vectors, np.repeat([0, 1], 10), multiple=False) == 1).all()
    sets = np.tile([[1, 1], [1, 0]], (10, 1))
    assert 0.5 <= agreement(vectors, sets, multiple=True).mean() < 1
