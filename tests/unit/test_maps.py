import numpy as np
import pytest

from ml_backend.domain.generation import normalise
from ml_backend.domain.model import SPACE_DIM
from ml_backend.services.learning.maps import density, fit_pca, lay_out


class FirstTwo:
    """A projector that remembers where it was told to start."""

    initial = None

    def project(self, embeddings, initial=None):
        self.initial = initial
        return embeddings[:, :2].copy()


def blobs(n=400, groups=8, seed=0):
    random = np.random.default_rng(seed)
    centres = random.standard_normal((groups, SPACE_DIM))
    return normalise(centres[np.arange(n) % groups] + 0.2 * random.standard_normal((n, SPACE_DIM)))


def keys(n, first=0):
    return [f"{i:032x}" for i in range(first, first + n)]


def test_pca_keeps_what_a_full_decomposition_keeps():
    random = np.random.default_rng(0)
    features = (random.standard_normal((500, 100)) * np.linspace(5, 0.1, 100)).astype(np.float16)
    pca = fit_pca(features)
    exact = features.astype(np.float64)
    values = np.linalg.svd(exact - exact.mean(axis=0), compute_uv=False)
    kept = ((exact - exact.mean(axis=0)) @ pca.components.T) ** 2
    assert kept.sum() == pytest.approx((values[:SPACE_DIM] ** 2).sum(), rel=1e-3)
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(SPACE_DIM), atol=1e-4)


def test_pca_reads_a_memory_map_and_its_signs_are_always_the_same(tmp_path):
    features = np.random.default_rng(1).standard_normal((300, 80)).astype(np.float16)
    mapped = np.memmap(tmp_path / "f", np.float16, "w+", shape=features.shape)
    mapped[:] = features
    first, second = fit_pca(mapped), fit_pca(-features)
    np.testing.assert_allclose(np.abs(first.components), np.abs(second.components), atol=1e-3)
    largest = np.abs(first.components).argmax(axis=1)
    assert (first.components[np.arange(SPACE_DIM), largest] > 0).all()


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_components_beyond_the_rank_of_few_images_are_zero(n):
    features = np.random.default_rng(2).standard_normal((n, 80)).astype(np.float16)
    pca = fit_pca(features)
    assert pca.components.shape == (SPACE_DIM, 80)
    assert pca.components.any(axis=1).sum() == max(n - 1, 0)
    assert np.isfinite(pca.encode(features)).all()


def test_equal_images_have_no_components():
    pca = fit_pca(np.ones((50, 80), np.float16))
    assert not pca.components.any()
    assert not pca.encode(np.ones((2, 80))).any()


def test_clusters_find_groups_and_keep_their_numbers_when_images_come_and_the_space_turns():
    raw = blobs()
    first = lay_out(keys(400), raw, FirstTwo(), None, 1)
    groups = np.arange(400) % 8
    assert max(np.bincount(first.cluster[groups == 0])) / 50 > 0.4
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((SPACE_DIM, SPACE_DIM)))[0]
    more = normalise(np.concatenate([raw, blobs(40, seed=0)]) @ turn)
    second = lay_out(keys(440), more.astype(np.float32), FirstTwo(), first, 2)
    assert len(second.centroids) == len(first.centroids)
    assert (second.cluster[:400] == first.cluster).mean() > 0.9


def test_far_more_images_get_more_clusters_and_the_old_ones_stay_first():
    raw = blobs(2000, 30)
    first = lay_out(keys(200), raw[:200], FirstTwo(), None, 1)
    second = lay_out(keys(2000), raw, FirstTwo(), first, 2)
    assert len(first.centroids) == 10
    assert len(second.centroids) == 31
    assert ((second.centroids[:10] * first.centroids).sum(axis=1) > 0.3).mean() > 0.8


def test_the_projector_starts_from_the_old_map_and_knows_which_images_are_new():
    raw, projector = blobs(60), FirstTwo()
    first = lay_out(keys(50), raw[:50], projector, None, 1)
    assert projector.initial is None
    order = np.random.default_rng(0).permutation(60)
    lay_out(np.array(keys(60))[order], raw[order], projector, first, 2)
    back = projector.initial[np.argsort(order)]
    np.testing.assert_array_equal(back[:50], first.xy)
    assert np.isnan(back[50:]).all()


def test_a_map_of_another_space_has_clusters_and_densities_of_the_raw_one():
    raw = blobs(100)
    other = np.random.default_rng(0).random((100, SPACE_DIM)).astype(np.float32)
    mapped = lay_out(keys(100), raw, FirstTwo(), None, 1, other)
    plain = lay_out(keys(100), raw, FirstTwo(), None, 1)
    np.testing.assert_array_equal(mapped.cluster, plain.cluster)
    np.testing.assert_array_equal(mapped.density, plain.density)
    np.testing.assert_array_equal(mapped.xy, other[:, :2])


def test_crowded_images_are_denser_than_lonely_ones():
    raw = blobs(200, 4)
    raw[0] = normalise(np.random.default_rng(9).standard_normal((1, SPACE_DIM)))[0]
    assert density(raw).argmin() == 0


@pytest.mark.parametrize("n", [0, 1, 2, 3, 17])
def test_few_or_equal_images_are_laid_out_too(n):
    for raw in (blobs(n), np.zeros((n, SPACE_DIM), np.float32), normalise(np.ones((n, SPACE_DIM)))):
        found = lay_out(keys(n), raw, FirstTwo(), None, 1)
        assert len(found.cluster) == len(found.density) == n
        assert np.isfinite(found.density).all()
        again = lay_out(keys(n), raw, FirstTwo(), found, 2)
        assert len(again.centroids) == len(found.centroids)
