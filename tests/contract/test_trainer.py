import numpy as np
import pytest

from ml_backend.adapters.models.trainer_torch import TorchTrainer
from ml_backend.domain.errors import BadRequest
from ml_backend.domain.model import SPACE_DIM
from ml_backend.services.learning.maps import fit_pca


def images(n, classes=3, width=96, seed=0, noise=0.5):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, width))
    y = np.arange(n) % classes
    return (centres[y] + noise * random.standard_normal((n, width))).astype(np.float16), y


def test_a_head_tells_unseen_images_apart_in_64_unit_dimensions():
    features, y = images(60)
    head = TorchTrainer("cpu").fit(features, y, multiple=False, pca=fit_pca(features).components)
    unseen, truth = images(300, seed=1)
    embeddings = head.encode(unseen)
    assert embeddings.shape == (300, SPACE_DIM)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(head.prototypes, axis=1), 1, atol=1e-5)
    probabilities = head.probabilities(embeddings, multiple=False)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probabilities.argmax(axis=1) == truth).mean() > 0.95


def test_training_beats_where_it_started():
    features, y = images(150, classes=10, noise=3.0)
    unseen, truth = images(500, classes=10, seed=1, noise=3.0)
    pca = fit_pca(features).components
    right = []
    for steps in (0, 50):
        head = TorchTrainer("cpu", steps=steps).fit(features, y, multiple=False, pca=pca)
        said = head.probabilities(head.encode(unseen), multiple=False)
        right.append(-np.log(said[np.arange(500), truth]).mean())
    assert right[1] < right[0]


def test_a_multiple_choice_learns_each_class_on_its_own():
    features, y = images(120, classes=4)
    targets = np.stack([y < 2, y % 2 == 0, np.zeros(120), np.ones(120)], axis=1).astype(int)
    head = TorchTrainer("cpu").fit(features, targets, multiple=True, pca=fit_pca(features).components)
    unseen, truth = images(200, classes=4, seed=1)
    said = head.probabilities(head.encode(unseen), multiple=True) >= 0.5
    assert (said[:, 0] == (truth < 2)).mean() > 0.95
    assert (said[:, 1] == (truth % 2 == 0)).mean() > 0.95
    assert not said[:, 2].any()
    assert said[:, 3].all()


def test_the_same_seed_gives_the_same_head():
    features, y = images(40)
    pca = fit_pca(features).components
    first, second = (TorchTrainer("cpu").fit(features, y, multiple=False, pca=pca, seed=7) for _ in range(2))
    np.testing.assert_allclose(first.weight, second.weight, atol=1e-5)
    np.testing.assert_allclose(first.prototypes, second.prototypes, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 1500])
def test_few_labels_and_more_than_a_batch_give_finite_heads(n):
    features, _ = images(n)
    y = np.arange(n) % 2
    head = TorchTrainer("cpu", steps=5).fit(features, y, multiple=False, pca=fit_pca(features).components)
    assert np.isfinite(head.weight).all()
    assert np.isfinite(head.probabilities(head.encode(features), multiple=False)).all()


def test_a_class_without_an_example_does_no_harm():
    features, y = images(40, classes=2)
    head = TorchTrainer("cpu").fit(features, y * 2, multiple=False, pca=fit_pca(features).components)
    said = head.probabilities(head.encode(features), multiple=False)
    assert said.shape == (40, 3)
    assert (said.argmax(axis=1) == y * 2).all()


def test_an_unknown_device_is_named():
    with pytest.raises(BadRequest, match=r"'tpu'.*RUSH_DEVICE"):
        TorchTrainer("tpu")
