"""``rush audit`` and ``rush certify`` from the first look to taking everything back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ml_backend.adapters.redis.state import RedisState
from ml_backend.cli import certify
from ml_backend.cli import main as cli
from ml_backend.domain.errors import NotFound
from ml_backend.domain.model import Annotation, PredictionId, PredictionRow, Task, TaskId, TaskRecord
from ml_backend.services.certification import accept as accepting
from ml_backend.wire import annotation
from tests.fakes import FakeLabelStudio, World


class Studio(FakeLabelStudio):
    """Label Studio with annotations, certified predictions and the bulk action, over what State holds."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World
        self.certified: dict[int, dict[str, Any]] = {}
        self.made: dict[int, dict[str, Any]] = {}
        self.dies_after = 10**9

    def project(self, project: int) -> dict[str, Any]:
        return {"label_config": self.world.config}

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        if not str(predictions[0]["model_version"]).startswith("rush-certified"):
            return super().import_predictions(project, predictions)
        for row in predictions:
            if len(self.certified) >= self.dies_after:
                raise KeyboardInterrupt
            self.certified[10_000 + len(self.certified)] = dict(row)
        return len(predictions)

    def predictions(self, project: int, tasks: Sequence[TaskId] | None = None) -> list[PredictionRow]:
        rows = [
            PredictionRow(PredictionId(n), row["task"], 0.0, row["model_version"])
            for n, row in self.certified.items()
            if tasks is None or row["task"] in tasks
        ]
        return super().predictions(project, tasks) + rows

    def annotations(self) -> list[Annotation]:
        return self.world.state.annotations(self.world.ref) + [annotation(row) for row in self.made.values()]

    def records(self, project: int, control: object = None) -> Iterator[TaskRecord]:
        for task in self.world.tasks:
            yield TaskRecord(Task(task, {}), tuple(a for a in self.annotations() if a.task == task))

    def call(self, method: str, path: str, **request: Any) -> Any:
        if path == "/api/dm/actions":
            wanted, version = request["json"]["selectedItems"]["included"], request["json"]["model_version"]
            for n, row in self.certified.items():
                if row["task"] in wanted and row["model_version"] == version:
                    self.made[n] = {"id": n, "task": row["task"], "result": row["result"]}
            return {}
        if path == "/api/tasks":
            taken = {a.task for a in self.annotations()}
            some = json.loads(request["params"]["query"])["selectedItems"]["included"]
            return {"tasks": [{"id": task, "total_annotations": int(task in taken)} for task in some]}
        if "model-versions" in path:
            version = request["json"]["model_version"]
            self.certified = {n: r for n, r in self.certified.items() if r["model_version"] != version}
            return {}
        number = int(path.strip("/").rpartition("/")[2])
        if self.made.pop(number, None) is None:
            raise NotFound(f"No annotation {number}.")
        return {}


@pytest.fixture
def world(state: RedisState, monkeypatch: pytest.MonkeyPatch) -> World:
    studio = Studio()
    made = World(state, count=300, window=20, studio=studio)
    studio.world = made
    container = SimpleNamespace(
        state=state,
        artifacts=made.ports.artifacts,
        features=lambda name: made.features,
        feature_set=lambda ref: "plain",
        studio=studio,
        jobs=made.jobs,
        ref=lambda project: made.ref,
    )
    monkeypatch.setattr(certify, "open_container", lambda: container)
    made.settle()
    for task in made.tasks[:9]:
        made.answer(task)
    return made


def rush(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.main, [words[0], "--project", "1", *words[1:]])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def audit_everything(world: World) -> None:
    sample = world.ports.artifacts.audit_sample(world.ref)
    assert sample is not None
    for task in sample.audits:
        world.answer(task)


def test_before_any_draw_it_says_what_a_certificate_takes(world: World) -> None:
    said = rush("certify", "--error", "0.1")
    assert "No audit sample was drawn" in said
    assert "all 291 open images with at most 10 % wrong:" in said
    assert "rush audit --project 1 --error 0.1 --confidence 0.95" in said
    assert "too few to certify 0.1 %" in rush("certify", "--error", "0.001")


@pytest.mark.slow
def test_from_a_draw_to_taking_over_and_back(world: World) -> None:
    said = rush("audit", "--error", "0.2", "--surest", "1", "--count", "60")
    assert "60 of the 291 surest open images are audits" in said
    assert "Nothing can be taken over yet" in rush("certify")
    assert "of labelling" in rush("certify")
    audit_everything(world)
    said = rush("certify", "--human-error", "0.01")
    assert "231 images can be taken over now" in said
    assert "0 of the 60 audits among them were wrong" in said
    assert "counting people as wrong in 1 %" in said
    assert not world.studio.certified
    queue = dict(world.studio.rows)
    assert "231 of 231 certified images were written as predictions" in rush("certify", "--accept")
    assert "0 of 231" in rush("certify", "--accept")
    assert world.studio.rows == queue
    assert "231 of 231" in rush("certify", "--accept", "--as", "annotations")
    assert all(annotation(row).machine for row in world.studio.made.values())
    assert "0 of 231" in rush("certify", "--accept", "--as", "annotations")
    assert ("sync", {}) in world.jobs.asked
    assert "231 annotations and 231 predictions were taken back" in rush("certify", "--revert")
    assert not world.studio.made
    assert "0 annotations and 0 predictions" in rush("certify", "--revert")


def test_ctrl_c_loses_nothing_and_the_next_run_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "CHUNK", 50)
    rush("audit", "--error", "0.2", "--surest", "1", "--count", "60")
    audit_everything(world)
    world.studio.dies_after = 120
    assert "Stopped." in rush("certify", "--accept", code=130)
    world.studio.dies_after = 10**9
    assert "111 of 231" in rush("certify", "--accept")
    assert len({row["task"] for row in world.studio.certified.values()}) == len(world.studio.certified) == 231


def test_another_target_than_that_of_the_draw_is_refused(world: World) -> None:
    rush("audit", "--error", "0.1")
    assert "A target that is chosen after answers were seen" in rush("certify", "--error", "0.2", code=1)
    assert "not what audit sample 1 was made for (0.95)" in rush("certify", "--confidence", "0.9", code=1)
    rush("certify", "--error", "0.1", "--confidence", "0.95")


def test_more_audits_can_be_asked_for(world: World) -> None:
    rush("audit", "--error", "0.05", "--surest", "1", "--count", "20")
    said = rush("certify")
    assert "rush audit --project 1 --more" in said
    assert "30 of the 291 surest open images are audits" in rush("audit", "--more", "10")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("audit", "--error", "1.5"), "--error 1.5 is outside of (0, 1)"),
        (("audit", "--share", "0"), "--share 0.0 is outside of (0, 1]"),
        (("audit", "--surest", "2"), "--surest 2.0 is outside of (0, 1]"),
        (("audit", "--count", "0"), "--count 0 is no number"),
        (("audit", "--more", "5"), "has no audit sample"),
        (("certify", "--accept", "--revert"), "contradict each other"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(world: World, words: tuple[str, ...], problem: str) -> None:
    assert problem in rush(*words, code=1)


def test_nothing_certified_is_not_taken_over(world: World) -> None:
    rush("audit", "--error", "0.2", "--surest", "1", "--count", "60")
    assert "Nothing can be taken over now" in rush("certify", "--accept", code=1)
    assert not world.studio.certified
