"""``rush audit`` and ``rush certify`` from the first look to taking everything back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ml_backend.adapters.redis.state import RedisState
from ml_backend.cli import certify
from ml_backend.cli import main as cli
from ml_backend.controls import control_of
from ml_backend.domain.errors import LabelStudioError, NotFound
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
        self.numbers = list(range(10_000))
        self.losing: list[int] = []
        self.refusing: list[int] = []
        self.idle_actions = 0

    def project(self, project: int) -> dict[str, Any]:
        return {"label_config": self.world.config}

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        if not str(predictions[0]["model_version"]).startswith("rush-certified"):
            return super().import_predictions(project, predictions)
        before = len(self.certified)
        for row in predictions:
            if len(self.certified) >= self.dies_after:
                raise KeyboardInterrupt
            if row["task"] in self.losing:
                self.losing.remove(row["task"])
            elif row["task"] not in self.refusing:
                self.certified[10_000 + self.numbers.pop()] = dict(row)
        return len(self.certified) - before

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
        if path == "/api/dm/actions" and self.idle_actions:
            self.idle_actions -= 1
            return {"detail": "Created 0 annotations"}
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
        origin="http://studio",
    )
    monkeypatch.setattr(certify, "open_container", lambda: container)
    made.settle()
    for task in made.tasks[:9]:
        made.answer(task)
    return made


def rush(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.main, [words[0], "--project", "1", *words[1:]])
    assert result.exit_code == code, result.output
    assert "[/]" not in result.output
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
    assert "0 of 231 certified images were written as predictions; 231 need none" in rush(
        "certify", "--accept"
    )
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
        (("audit", "--more", "5"), "has no audit sample"),
        (("audit", "--resume", "2"), "has no audit sample 2. It has: none"),
        (("audit", "--more", "5", "--again"), "contradict each other"),
        (("certify", "--accept", "--revert"), "contradict each other"),
        (("audit", "--again", "--resume", "1"), "contradict each other"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(world: World, words: tuple[str, ...], problem: str) -> None:
    assert problem in rush(*words, code=1)


def test_nothing_certified_is_not_taken_over(world: World) -> None:
    rush("audit", "--error", "0.2", "--surest", "1", "--count", "60")
    assert "Nothing can be taken over now" in rush("certify", "--accept", code=1)
    assert not world.studio.certified


def left(world: World) -> list[TaskId]:
    """What nobody has answered."""
    return [task for task in world.tasks if world.project.pool.is_open(task)]


def certified(world: World) -> None:
    rush("audit", "--error", "0.2", "--surest", "1", "--count", "60")
    audit_everything(world)


def test_what_label_studio_loses_once_is_written_again(world: World) -> None:
    certified(world)
    world.studio.losing = left(world)[:2]
    assert "231 of 231 certified images were written as predictions." in rush("certify", "--accept")
    world.studio.idle_actions = 2
    assert "231 of 231" in rush("certify", "--accept", "--as", "annotations")
    assert len(world.studio.made) == 231


def test_what_label_studio_leaves_out_is_counted_and_named(world: World) -> None:
    certified(world)
    one, other = world.studio.refusing = left(world)[:2]
    said = rush("certify", "--accept", code=1)
    assert "229 of 231 certified images were written as predictions." in said
    assert f"2 were not written: Label Studio left it out (tasks {one}, {other})." in said
    world.studio.idle_actions = 10**9
    said = rush("certify", "--accept", "--as", "annotations", code=1)
    assert "0 of 231 certified images were written as annotations." in said
    assert "229 were not written: Label Studio made no annotation of its prediction" in said


@pytest.mark.parametrize("kind", ["predictions", "annotations"])
def test_classes_that_were_renamed_are_named_and_nothing_is_said_to_be_written(
    world: World, kind: str
) -> None:
    certified(world)
    config = world.config
    world.config = config.replace('"a"', '"A"').replace('"b"', '"B"').replace('"c"', '"C"')
    said = rush("certify", "--accept", "--as", kind, code=1)
    assert f"0 of 231 certified images were written as {kind}." in said
    assert "the label config has no 'a' any more" in said
    assert not world.studio.certified
    world.config = config
    assert f"231 of 231 certified images were written as {kind}." in rush("certify", "--accept", "--as", kind)


def test_a_rename_that_a_person_named_renames_what_is_certified(world: World) -> None:
    certified(world)
    said = rush("certify")
    world.config = world.config.replace('"a"', '"A"')
    renames = json.dumps({"a": "A"})
    control = control_of({"label_config": world.config, "renames": renames})
    world.state.set_options(world.ref, label_config=world.config, renames=renames)
    notes = world.state.annotations(world.ref)
    world.state.set_annotations(world.ref, [replace(n, labels=control.current(n.labels)) for n in notes])
    assert rush("certify") == said
    assert "231 of 231 certified images were written as predictions." in rush("certify", "--accept")
    chosen = {row["result"][0]["value"]["choices"][0] for row in world.studio.certified.values()}
    assert chosen == {"A", "b", "c"}


def test_what_will_not_be_deleted_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    certified(world)
    rush("certify", "--accept", "--as", "annotations")
    call = world.studio.call
    stuck = next(iter(world.studio.made))

    def refuse(method: str, path: str, **request: Any) -> Any:
        if path == f"/api/annotations/{stuck}/" or "model-versions" in path:
            if "model" in path:
                return {}
            raise LabelStudioError("It is locked.")
        return call(method, path, **request)

    monkeypatch.setattr(world.studio, "call", refuse)
    said = rush("certify", "--revert", code=1)
    assert "230 annotations and 0 predictions were taken back." in said
    assert f"annotation {stuck}: It is locked." in said
    assert "231 predictions of rush-certified-1" in said


def test_an_audit_sample_with_answers_is_not_thrown_away_unasked(world: World) -> None:
    rush("audit", "--error", "0.2", "--surest", "1", "--count", "60")
    first = world.ports.artifacts.audit_sample(world.ref)
    rush("audit", "--error", "0.2", "--surest", "1", "--count", "50")  # nobody has answered any
    audit_everything(world)
    before = rush("certify")
    said = rush("audit", "--error", "0.2", code=1)
    assert "--again is needed: audit sample 2 runs, and 50 of its 50 audits are answered" in said
    assert rush("certify") == before
    said = rush("audit", "--again", "--error", "0.2", "--surest", "1", "--count", "30")
    assert "Audit sample 2 is set aside with 50 answered audits." in said
    assert "rush audit --project 1 --resume 2" in said
    for _ in range(5):
        rush("audit", "--more", "1")
    assert "Audit sample 3" in rush("certify")
    assert "Audit sample 3 is set aside with 0" in rush("audit", "--resume", "2")
    assert rush("certify") == before
    assert "Audit sample 1: 60 of the 291" in rush("audit", "--resume", "1")
    assert world.ports.artifacts.audit_sample(world.ref).tasks.tolist() == first.tasks.tolist()
    assert "has no audit sample 9. It has: 1, 2, 3." in rush("audit", "--resume", "9", code=1)
    assert "Audit sample 4:" in rush("audit", "--again")


def test_thresholds_are_fixed_with_the_sample_and_those_of_an_older_one_at_its_first_look(
    world: World,
) -> None:
    rush("audit", "--error", "0.2", "--surest", "1", "--count", "60")
    drawn = world.ports.artifacts.audit_sample(world.ref)
    assert drawn.thresholds
    world.ports.artifacts.publish_audit_sample(world.ref, replace(drawn, thresholds=()))
    audit_everything(world)
    rush("certify")
    kept = world.ports.artifacts.audit_sample(world.ref)
    assert kept.thresholds == drawn.thresholds
    fewer = replace(kept, thresholds=kept.thresholds[-1:])
    world.ports.artifacts.publish_audit_sample(world.ref, fewer)
    assert "All 291 such images together" in rush("certify")


def test_where_much_was_deleted_the_target_of_all_labels_shows_it(world: World) -> None:
    rush("audit", "--of-all", "--error", "0.2", "--count", "60")
    audit_everything(world)
    assert "20 % of all 300 labels wrong (60), people labelling what is not certified," in rush("certify")
    rest = left(world)
    world.project.deleted(rest[:131])
    said = rush("certify")
    assert "certified; skipped or deleted since: 131, so 60 of 169, 35.5 % of them" in said
    assert "at most 35.5 % of all 169 labels" in said
    assert "That is above the target" in said
    for task in rest[131:181]:
        world.answer(task, skipped=True)
    assert "skipped or deleted since: 181, so 60 of 119, 50.4 % of them" in rush("certify")
