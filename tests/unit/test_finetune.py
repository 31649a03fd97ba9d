"""Fine-tuning a small backbone on real digits with everything real but Label Studio: state, jobs, torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ml_backend import jobs
from ml_backend.adapters.files.digits import write_digits
from ml_backend.adapters.files.features import made_with
from ml_backend.adapters.models import backbones
from ml_backend.adapters.models.backbones import HALF, Backbone
from ml_backend.adapters.models.decode import decode
from ml_backend.adapters.models.embedder_openvino import OpenVinoEmbedder
from ml_backend.adapters.models.embedder_torch import TorchEmbedder
from ml_backend.adapters.models.finetune_model import Linear, Model, Teacher, quick_on_cpu
from ml_backend.adapters.models.finetune_training import Training
from ml_backend.adapters.models.finetuner import TorchFinetuner
from ml_backend.adapters.redis.state import RedisState
from ml_backend.bootstrap import Container
from ml_backend.domain.content_hash import content_key
from ml_backend.domain.generation import Generation, untuned
from ml_backend.domain.model import Annotation, AnnotationId, ProjectRef, Task, TaskId, TaskRecord
from ml_backend.services.embedding import ingest as ingesting
from ml_backend.services.learning.finetune import compare
from ml_backend.settings import Settings
from tests.fakes import FakeJobs

pytestmark = pytest.mark.slow

IMAGES, LABELS, SIZE, DIM = 400, 300, 64, 32
CHOICES = "".join(f'<Choice value="{n}"/>' for n in range(10))
CONFIG = (
    '<View><Image name="image" value="$image"/>'
    f'<Choices name="digit" toName="image" choice="single">{CHOICES}</Choices></View>'
)


def tiny() -> nn.Module:
    """A small network, not yet trained."""
    layers: list[nn.Module] = []
    for coming, going in ((3, 16), (16, 32), (32, DIM)):
        layers += [nn.Conv2d(coming, going, 3, 2, 1), nn.BatchNorm2d(going), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Digits:
    """A Label Studio that serves digits from a folder."""

    origin = "http://studio"

    def __init__(self, files: list[Path]) -> None:
        self.files = {f"/data/{n}.png": path for n, path in enumerate(files)}

    def records(self, project: int, control: object = None) -> Iterator[TaskRecord]:
        for n, address in enumerate(self.files):
            yield TaskRecord(Task(TaskId(n + 1), {"image": address}))

    def download(self, url: str, project: int | None = None) -> bytes:
        return self.files[url].read_bytes()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are tiny: threads that wait for each other on a busy machine make minutes of seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def every_digit(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return sorted(folder.rglob("*.png"), key=lambda path: path.name)


@pytest.fixture(scope="module")
def digits(every_digit: list[Path]) -> list[Path]:
    return every_digit[:IMAGES]


@pytest.fixture(scope="module")
def pretrained(every_digit: list[Path]) -> nn.Module:
    """The small network, trained to tell small numbers from large ones in digits that no project has."""
    torch.manual_seed(0)
    files = every_digit[IMAGES:]
    pixels = np.stack([decode(path.read_bytes(), SIZE) for path in files])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    y = torch.tensor([int(path.parent.name) > 4 for path in files]).long()
    network = tiny()
    model = nn.Sequential(network, nn.Linear(DIM, 2))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for rows in torch.randperm(len(y)).repeat(4).split(64):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    return network.eval()


@pytest.fixture
def container(
    state: RedisState,
    redis_url: str,
    tmp_path: Path,
    digits: list[Path],
    pretrained: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> Container:
    """A worker's parts, in a project whose images are embedded and partly labelled."""
    base = Backbone("tiny", DIM, lambda: deepcopy(pretrained), HALF, HALF)
    monkeypatch.setitem(backbones.BUILT_IN, "tiny", base)
    settings = Settings(
        _env_file=None, data_dir=tmp_path, redis_url=redis_url, backbone="tiny", image_size=SIZE, device="cpu"
    )
    made, studio = Container(settings), Digits(digits)
    tuner = TorchFinetuner("tiny", SIZE, "cpu", tmp_path / "networks", looks=4, learning_rate=2e-3)
    made.__dict__.update(
        studio=studio, jobs=FakeJobs(), state=state, origin=studio.origin, finetuner=lambda ref: tuner
    )
    monkeypatch.setattr(jobs, "container", lambda: made)
    ref = made.ref(1)
    state.set_options(ref, label_config=CONFIG)
    jobs.ingest(ref, {str(n + 1): address for n, address in enumerate(studio.files)})
    state.set_annotations(
        ref,
        [
            Annotation(AnnotationId(n + 1), TaskId(n + 1), 1, (path.parent.name,), False, 1.0, f"2026-{n:06}")
            for n, path in enumerate(digits[:LABELS])
        ],
    )
    jobs.train(ref)
    return made


def current(container: Container) -> Generation:
    found = container.artifacts.generation(container.ref(1))
    assert found is not None
    return found


def judged(generation: Generation) -> set[int]:
    return set(generation.manifest["trained_on"]["judged"])


def test_a_better_backbone_is_published_and_judged_only_on_what_it_has_not_seen(container: Container) -> None:
    ref, plain = container.ref(1), current(container)
    jobs.finetune(ref)
    full = current(container)
    assert full.number == plain.number + 1
    assert full.backbone != plain.backbone
    assert untuned(full.backbone) == plain.backbone
    held_out = {name: full.manifest["held_out"][full.suggester][name] for name in ("accuracy", "log_loss")}
    before = plain.manifest["held_out"][plain.suggester]
    assert held_out["accuracy"] > before["accuracy"] + 0.05
    seen = set(full.manifest["tuned_on"])
    assert len(seen) == 0.8 * LABELS
    assert not judged(full) & seen
    assert len(container.features_of(ref, full).missing(container.state.tasks(ref).values())) == 0
    assert ("lay_out_map", {}) in container.jobs.asked
    jobs.train(ref)  # an ordinary round afterwards
    again = current(container)
    assert (again.number, again.backbone) == (full.number + 1, full.backbone)
    assert not judged(again) & seen


def test_a_run_killed_while_it_embeds_leaves_the_old_generation_and_does_not_train_again(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, plain = container.ref(1), current(container)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ingesting, "ingest", killed)
        with pytest.raises(KeyboardInterrupt):
            jobs.finetune(ref)
    assert current(container).backbone == plain.backbone
    monkeypatch.setattr(Training, "run", killed)
    jobs.finetune(ref)
    assert current(container).number == plain.number + 1


def test_a_backbone_that_is_not_better_is_not_published(
    container: Container, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = current(container)

    def ruin(*_: Any) -> dict[str, torch.Tensor]:
        return {key: torch.zeros_like(value) for key, value in tiny().state_dict().items()}

    monkeypatch.setattr(Training, "run", ruin)
    with caplog.at_level(logging.INFO):
        jobs.finetune(container.ref(1))
    assert current(container).number == plain.number
    assert "fine-tuning the backbone is not better" in caplog.text


def test_a_labelled_image_that_shows_another_picture_by_now_is_left_out(
    container: Container,
    every_digit: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ref = container.ref(1)
    before, other = container.state.tasks(ref), every_digit[IMAGES + 5]
    monkeypatch.setattr(Training, "run", lambda *_: tiny().state_dict())
    container.studio.files["/data/0.png"] = other  # type: ignore[attr-defined]
    jobs.finetune(ref)
    assert "/data/0.png is left out: it shows another picture" in caplog.text
    (name,) = (container.settings.data_dir / "features").glob("tiny~*")
    features = container.features(name.name)
    assert features.missing([before[TaskId(1)], content_key(other.read_bytes())]) == [before[TaskId(1)]]
    assert not features.missing(key for task, key in before.items() if task != 1)


def test_too_few_labels_are_named(container: Container, caplog: pytest.LogCaptureFixture) -> None:
    ref = container.ref(1)
    container.state.delete_annotations(ref, [AnnotationId(n) for n in range(31, LABELS + 1)])
    jobs.finetune(ref)
    assert "30 labels of 9 kinds are too few to fine-tune a backbone" in caplog.text


def test_torch_and_openvino_read_the_same_fine_tuned_weights(
    container: Container, digits: list[Path]
) -> None:
    jobs.finetune(container.ref(1))
    name, size = made_with(current(container).backbone)
    folder = container.settings.data_dir / "networks"
    one = OpenVinoEmbedder(name, size, threads=1, cache=folder)
    other = TorchEmbedder(name, size, device="cpu", threads=1, cache=folder)
    images = [(path.name, path.read_bytes()) for path in digits[:20]]
    left, right = ([np.asarray(row) for _, row in it.embed(images)] for it in (one, other))
    assert one.name == other.name == current(container).backbone
    for a, b in zip(left, right, strict=True):
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999
    one.close()
    other.close()


def record(right: dict[int, float], sure: float = 0.9, **more: Any) -> dict[str, Any]:
    losses = [-math.log(sure if r else 1 - sure) for r in right.values()]
    return {
        "trained_on": {"judged": list(right), "right": list(right.values()), "loss": losses},
        **more,
    }


def test_better_means_surer_of_what_is_right_on_the_same_images_beyond_chance() -> None:
    old = {n: float(n % 2) for n in range(100)}
    assert compare(record(old), record(dict.fromkeys(range(50, 150), 1.0)))[1]
    assert not compare(record(old), record(old))[1]
    assert not compare(record(old), record({**old, 0: 1.0, 1: 0.0}))[1]
    assert not compare(record(old), record(dict.fromkeys(range(200, 300), 1.0)))[1]
    assert not compare(record(old), record(dict.fromkeys(old, 1.0), optimistic="…"))[1]
    assert not compare({"labels": 3}, record(old))[1]
    all_right = dict.fromkeys(range(20), 1.0)
    assert compare(record(all_right, 0.6), record(all_right, 0.95))[1], "surer of what is right"
    assert not compare(record(all_right, 0.95), record(all_right, 0.6))[1]
    assert not compare(record(all_right, 0.6), record({**all_right, 0: 0.0}, 0.95))[1], "fewer are right"


@pytest.mark.parametrize(
    ("side", "kernel", "stride"),
    [(2, 5, 1), (4, 5, 1), (2, 3, 1), (3, 5, 2), (8, 3, 1)],
)
def test_quick_depthwise_convolutions_give_the_same_numbers(side: int, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6), nn.Conv2d(6, 2, 1))
    quick = deepcopy(plain)
    quick_on_cpu(quick)
    images = torch.randn(5, 6, side, side)
    said = [network(images) for network in (plain, quick)]
    torch.testing.assert_close(*said)
    for answer in said:
        answer.square().sum().backward()
    for one, other in zip(plain.parameters(), quick.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_convolution_class_that_pads_in_its_own_way_is_left_alone() -> None:
    class Own(nn.Conv2d):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) + 1

    own = Own(4, 4, 5, 1, 2, groups=4)
    images = torch.randn(2, 4, 2, 2)
    before = own(images)
    quick_on_cpu(nn.Sequential(own))
    torch.testing.assert_close(own(images), before)


def test_a_teacher_of_a_quick_network_has_weights_of_its_own() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 5, 1, 2, groups=4), nn.Flatten())
    quick_on_cpu(network)
    model = Model(network, Linear(torch.zeros(16), torch.ones(()), 2))
    teacher, images = Teacher(model), torch.randn(3, 4, 2, 2)
    before = teacher.model.module(images)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(1.0)
    torch.testing.assert_close(teacher.model.module(images), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_the_weights_are_worth_as_much(
    digits: list[Path], tmp_path: Path, container: Container
) -> None:
    tuner = TorchFinetuner("tiny", SIZE, "cuda", tmp_path, looks=4, learning_rate=2e-3)
    container.__dict__["finetuner"] = lambda ref: tuner
    plain = current(container)
    jobs.finetune(ProjectRef("http://studio", 1))
    assert current(container).number == plain.number + 1
