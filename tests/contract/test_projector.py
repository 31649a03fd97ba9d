import numpy as np
import pytest

from ml_backend.adapters.models.projector_umap import UmapProjector
from ml_backend.domain.generation import normalise


@pytest.fixture(scope="module")
def projector():
    projector = UmapProjector()
    projector.warm()
    return projector


def blobs(n=300, groups=6):
    random = np.random.default_rng(0)
    centres = random.standard_normal((groups, 16))
    return normalise(centres[np.arange(n) % groups] + 0.2 * random.standard_normal((n, 16)))


def neighbours_of_the_same_group(xy, group, k=5):
    apart = ((xy[:, None] - xy[None]) ** 2).sum(axis=2)
    np.fill_diagonal(apart, np.inf)
    return (group[np.argsort(apart, axis=1)[:, :k]] == group[:, None]).mean()


def test_a_map_fills_the_unit_square_and_keeps_groups_together(projector):
    xy = projector.project(blobs())
    assert xy.dtype == np.float32
    np.testing.assert_allclose(xy.min(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(xy.max(axis=0), 1, atol=1e-6)
    assert neighbours_of_the_same_group(xy, np.arange(300) % 6) > 0.95


def test_a_map_from_an_old_one_stays_where_it_was(projector):
    rows = blobs()
    first = projector.project(rows)
    second = projector.project(rows, first)
    fresh = projector.project(normalise(rows[:, ::-1].copy()), np.full((300, 2), np.nan))
    assert np.abs(second - first).mean() < 0.1
    assert np.isfinite(fresh).all()


def test_a_mirrored_old_map_gives_a_mirrored_new_one(projector):
    rows = blobs()
    first = projector.project(rows)
    mirrored = first * [-1, 1] + [1, 0]
    assert np.abs(projector.project(rows, mirrored) - mirrored).mean() < 0.1


def test_new_images_land_among_their_neighbours(projector):
    rows = blobs()
    old = projector.project(rows)
    initial = old.copy()
    initial[:12] = np.nan
    found = projector.project(rows, initial)
    for row in range(12):
        mates = np.arange(300)[(np.arange(300) % 6 == row % 6) & (np.arange(300) >= 12)]
        assert np.linalg.norm(found[row] - found[mates].mean(axis=0)) < 0.25


@pytest.mark.parametrize("n", [0, 1, 2, 3, 15, 16, 17])
def test_few_images_are_laid_out_and_stay(projector, n):
    rows = blobs(n)
    xy = projector.project(rows)
    assert xy.shape == (n, 2)
    assert ((xy >= 0) & (xy <= 1)).all()
    again = projector.project(rows, xy)
    assert np.abs(again - xy).max(initial=0) < (1e-3 if n < 16 else 1.01)


def test_equal_images_share_the_middle_and_duplicates_do_no_harm(projector):
    assert (projector.project(np.ones((40, 8), np.float32)) == 0.5).all()
    assert (projector.project(np.zeros((40, 8), np.float32)) == 0.5).all()
    rows = blobs(200)
    rows[50:150] = rows[0]
    xy = projector.project(rows)
    assert np.isfinite(xy).all()


def test_beyond_the_landmarks_every_image_is_placed(projector, monkeypatch):
    monkeypatch.setattr("ml_backend.adapters.models.projector_umap.LANDMARKS", 150)
    xy = projector.project(blobs())
    assert np.isfinite(xy).all()
    assert neighbours_of_the_same_group(xy, np.arange(300) % 6) > 0.7
