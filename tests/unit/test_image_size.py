"""The size that images are embedded at: chosen by a project's first images, once, and the same for all."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from ml_backend import jobs
from ml_backend.adapters.models import backbones
from ml_backend.adapters.models.backbones import Backbone
from ml_backend.adapters.models.decode import longer_side
from ml_backend.adapters.redis.state import RedisState
from ml_backend.bootstrap import Container
from ml_backend.domain.errors import BadImage
from ml_backend.domain.generation import Generation, Pca
from ml_backend.domain.model import SPACE_DIM, TaskId
from ml_backend.services.embedding.image_size import SAMPLE, all_small, spread
from ml_backend.settings import Settings
from tests.fakes import FakeJobs, FakeLabelStudio, key_of

SMALL, ORDINARY = "efficientnet-lite0-160", "efficientnet-lite0-224"
Make = Callable[..., Container]


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def container(state: RedisState, redis_url: str, tmp_path: Path) -> Make:
    def make(**options: object) -> Container:
        settings = Settings(_env_file=None, data_dir=tmp_path, redis_url=redis_url, **options)  # type: ignore[arg-type]
        made = Container(settings)
        made.__dict__["origin"] = "http://studio"
        return made

    return make


def published(size: int | str, backbone: str = "efficientnet-lite0") -> Generation:
    pca = Pca(np.zeros(SPACE_DIM, np.float32), np.eye(SPACE_DIM, dtype=np.float32))
    return Generation(0, f"{backbone}-{size}", pca)


@pytest.mark.parametrize(
    ("sides", "small"),
    [([28] * 32, True), ([64, 32], True), ([65], False), ([28] * 31 + [640], False), ([], False)],
)
def test_only_where_all_images_are_small_they_are(sides: list[int], small: bool) -> None:
    assert all_small(sides) == small


def test_the_sample_is_spread_from_first_to_last() -> None:
    assert spread([]) == []
    assert spread([1]) == [1]
    assert spread(range(5)) == [0, 1, 2, 3, 4]
    found = spread(range(1000))
    assert (found[0], found[-1], len(found)) == (0, 999, SAMPLE)


def test_the_longer_side_is_read_from_the_head_of_a_file() -> None:
    assert longer_side(png(20, 300)) == 300
    assert longer_side(png(20, 300)[:60]) == 300
    assert longer_side(b"no image") is None
    assert longer_side(b"") is None


def test_small_images_settle_a_new_project_for_every_process(container: Make) -> None:
    worker, web = container(), container()
    ref = worker.ref(1)
    assert web.feature_set(ref) == ORDINARY
    worker.settle_image_size(ref, [png(28, 28), b"broken", png(32, 20)])
    web.settle_image_size(ref, [png(640, 480)])  # too late
    assert worker.feature_set(ref) == web.feature_set(ref) == SMALL
    assert web.features_of(ref, None) is web.features(SMALL)
    assert web.feature_set(worker.ref(2)) == ORDINARY
    worker.artifacts.publish_generation(ref, published(160))
    worker.state.set_options(ref, image_size="")  # as if Redis was lost
    assert web.feature_set(ref) == SMALL  # the generation says so, too


@pytest.mark.parametrize("images", [[png(640, 480)], [png(28, 28), png(100, 20)], [b"broken"], []])
def test_photographs_keep_the_ordinary_size(container: Make, images: list[bytes]) -> None:
    here = container()
    here.settle_image_size(here.ref(1), images)
    assert here.feature_set(here.ref(1)) == ORDINARY
    here.settle_image_size(here.ref(1), [png(28, 28)])
    assert here.feature_set(here.ref(1)) == ORDINARY


def never() -> object:
    pytest.fail("no image needs to be read")
    yield


def test_a_size_that_is_set_is_taken_and_no_image_is_read(container: Make) -> None:
    here = container(image_size=128)
    here.settle_image_size(here.ref(1), never())  # type: ignore[arg-type]
    assert here.feature_set(here.ref(1)) == "efficientnet-lite0-128"
    assert here.state.options(here.ref(1)) == {}


@pytest.mark.parametrize("size", [224, 160, 96])
def test_a_project_with_a_generation_keeps_its_size(container: Make, size: int) -> None:
    here = container()
    ref = here.ref(1)
    here.artifacts.publish_generation(ref, published(size))
    here.settle_image_size(ref, never())  # type: ignore[arg-type]
    assert here.feature_set(ref) == f"efficientnet-lite0-{size}"
    tuned = published(size, "efficientnet-lite0~0123abcd")
    here.artifacts.publish_generation(ref, tuned)
    assert here.feature_set(ref) == tuned.backbone
    assert here.untuned_feature_set(ref, tuned) == f"efficientnet-lite0-{size}"


def test_a_project_that_was_embedded_before_keeps_its_size(container: Make) -> None:
    here = container()
    ref = here.ref(1)
    here.features(ORDINARY).append([key_of(1)], np.zeros((1, 1280), np.float16))
    here.state.set_tasks(ref, {TaskId(1): key_of(1), TaskId(2): key_of(2)})
    here.settle_image_size(ref, never())  # type: ignore[arg-type]
    assert here.feature_set(ref) == ORDINARY


class Pictures(FakeLabelStudio):
    """Serves pictures of one size."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.asked = side, 0

    def download(self, url: str, project: int | None = None) -> bytes:
        self.asked += 1
        if url.startswith("/broken"):
            raise BadImage("It is not there.")
        return png(self.side, self.side)


@pytest.mark.parametrize(("fixed", "size"), [(True, 96), (False, 224)])
def test_a_backbone_that_nobody_measured_with_small_images_keeps_its_own_size(
    container: Make, monkeypatch: pytest.MonkeyPatch, fixed: bool, size: int
) -> None:
    other = Backbone("other", 48, lambda: nn.Flatten(), size=96, fixed=fixed)
    monkeypatch.setitem(backbones.BUILT_IN, "other", other)
    here = container(backbone="other")
    here.settle_image_size(here.ref(1), never())  # type: ignore[arg-type]
    assert here.feature_set(here.ref(1)) == f"other-{size}"


@pytest.mark.parametrize(("side", "size"), [(28, 160), (300, 224)])
def test_a_worker_s_first_images_settle_what_they_are_embedded_at(
    container: Make, monkeypatch: pytest.MonkeyPatch, side: int, size: int
) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    monkeypatch.setitem(backbones.BUILT_IN, "tiny", Backbone("tiny", 48, lambda: network, small=160))
    here, studio = container(backbone="tiny", device="cpu"), Pictures(side)
    here.__dict__.update(studio=studio, jobs=FakeJobs())
    monkeypatch.setattr(jobs, "container", lambda: here)
    ref = here.ref(1)
    jobs.ingest(ref, {"1": "/broken.png", "2": "/a.png"})
    assert here.feature_set(ref) == f"tiny-{size}"
    key = here.state.tasks(ref)[TaskId(2)]
    assert key in here.features(f"tiny-{size}")
    asked = studio.asked
    jobs.ingest(ref, {"3": "/b.png"})
    assert studio.asked == asked + 1  # nothing is looked at twice once the size is settled
