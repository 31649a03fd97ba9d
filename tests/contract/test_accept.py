"""Taking certified suggestions over and back, against a real Label Studio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.adapters.processes.servers import LocalLabelStudio
from ml_backend.controls import Choices
from ml_backend.domain.labels import resolve_label
from ml_backend.domain.model import LabelState, ProjectRef, Suggestion, TaskId, TaskRecord
from ml_backend.services.certification.accept import (
    CHUNK,
    Reverted,
    accept_annotations,
    accept_predictions,
    revert,
)
from ml_backend.wire import prediction

CONFIG = """<View><Image name="image" value="$image"/>
<Choices name="kind" toName="image"><Choice value="cat"/><Choice value="dog"/></Choices></View>"""
SPEC = Choices("kind", "image", "image", ("cat", "dog"))
CAT, DOG = Suggestion(("cat",), 0.93), Suggestion(("dog",), 0.97)
HUMAN = [{"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}]


@pytest.fixture(scope="module")
def studio(label_studio: LocalLabelStudio) -> Iterator[HttpLabelStudio]:
    client = HttpLabelStudio(label_studio.url, label_studio.token, timeout=30)
    yield client
    client.close()


@pytest.fixture
def ref(studio: HttpLabelStudio) -> ProjectRef:
    body = {"title": "certified", "label_config": CONFIG, "sampling": "Uncertainty sampling"}
    return ProjectRef(studio.origin, int(studio.call("POST", "/api/projects/", json=body)["id"]))


def tasks(studio: HttpLabelStudio, ref: ProjectRef, count: int, *, queued: int = 0) -> list[TaskId]:
    bodies: list[dict[str, Any]] = [{"data": {"image": f"http://127.0.0.1:1/{n}.png"}} for n in range(count)]
    for place, body in enumerate(bodies[:queued]):
        body["predictions"] = [prediction(SPEC, CAT, place)]
    ids = studio.import_tasks(ref.id, bodies)
    if queued:
        studio.update_project(ref.id, model_version="rush", show_collab_predictions=True)
    return ids


def records(studio: HttpLabelStudio, ref: ProjectRef) -> dict[TaskId, TaskRecord]:
    return {record.task.id: record for record in studio.records(ref.id, SPEC)}


def annotate(studio: HttpLabelStudio, task: TaskId, **fields: Any) -> int:
    body = {"result": HUMAN, "lead_time": 1.5, **fields}
    return int(studio.call("POST", f"/api/tasks/{task}/annotations/", json=body)["id"])


def test_predictions_are_kept_with_their_mark_once_and_leave_the_queue_alone(
    studio: HttpLabelStudio, ref: ProjectRef
) -> None:
    made = tasks(studio, ref, 6, queued=3)
    certified = [(task, DOG) for task in made]
    assert accept_predictions(ref, studio, SPEC, certified[:2], "4.ab").new == 2  # cut off
    assert accept_predictions(ref, studio, SPEC, certified, "4.ab").new == 4
    assert accept_predictions(ref, studio, SPEC, certified, "4.ab").new == 0
    rows = [row for row in studio.predictions(ref.id) if row.model_version == "rush-certified-4.ab"]
    assert sorted(row.task for row in rows) == made
    stored = studio.call("GET", f"/api/predictions/{rows[0].id}/")
    assert stored["result"][0]["meta"]["rush"] == {"certificate": "4.ab", "value": {"choices": ["dog"]}}
    assert stored["score"] == pytest.approx(0.97)
    assert studio.next_task(ref.id) == made[0]
    shown = studio.call("GET", f"/api/projects/{ref.id}/next")
    assert shown["predictions"][0]["result"][0]["value"]["choices"] == ["cat"]
    assert all(not record.annotations for record in records(studio, ref).values())


def test_annotations_are_marked_close_their_tasks_and_people_come_first(
    studio: HttpLabelStudio, ref: ProjectRef
) -> None:
    made = tasks(studio, ref, 6, queued=6)
    certified = [(task, DOG) for task in made]
    accept_predictions(ref, studio, SPEC, certified, "1.a")
    annotate(studio, made[0])
    annotate(studio, made[1], was_cancelled=True, result=[])
    assert accept_annotations(ref, studio, made, "1.a").new == 4
    assert accept_annotations(ref, studio, made, "1.a").new == 0
    found = records(studio, ref)
    assert [len(found[task].annotations) for task in made] == [1] * 6
    assert [found[task].annotations[0].machine for task in made] == [False, False, True, True, True, True]
    states = [resolve_label(found[task].annotations)[0] for task in made]
    assert states == [LabelState.LABELLED, LabelState.SKIPPED, *[LabelState.MACHINE] * 4]
    assert found[made[2]].annotations[0].labels == ("dog",)
    assert studio.project(ref.id)["finished_task_number"] >= 5
    assert studio.next_task(ref.id) in (None, made[1])


def test_revert_deletes_just_what_bears_the_mark_and_what_people_changed_stays(
    studio: HttpLabelStudio, ref: ProjectRef
) -> None:
    made = tasks(studio, ref, 5, queued=5)
    accept_predictions(ref, studio, SPEC, [(task, DOG) for task in made], "1.a")
    mine = annotate(studio, made[0])
    accept_annotations(ref, studio, made, "1.a")
    machine = records(studio, ref)[made[1]].annotations[0].id
    raw = studio.call("GET", f"/api/annotations/{machine}/")["result"]
    raw[0]["value"]["choices"] = ["cat"]
    studio.call("PATCH", f"/api/annotations/{machine}/", json={"result": raw})
    told: list[tuple[str, int, int]] = []
    assert revert(ref, studio, lambda *what: told.append(what)) == Reverted(3, 5, [])
    assert told[-1] == ("annotations", 3, 3)
    found = records(studio, ref)
    assert {task: [a.id for a in found[task].annotations] for task in made} == {
        made[0]: [mine],
        made[1]: [machine],
        **{task: [] for task in made[2:]},
    }
    assert {row.model_version for row in studio.predictions(ref.id)} == {"rush"}
    assert studio.project(ref.id)["model_version"] == "rush"
    assert revert(ref, studio) == Reverted(0, 0, [])
    assert studio.next_task(ref.id) == made[2]


def test_a_second_certificate_stands_beside_the_first(studio: HttpLabelStudio, ref: ProjectRef) -> None:
    made = tasks(studio, ref, CHUNK + 3)
    accept_predictions(ref, studio, SPEC, [(task, DOG) for task in made], "1.a")
    accept_predictions(ref, studio, SPEC, [(task, CAT) for task in made], "2.b")
    assert accept_annotations(ref, studio, made, "2.b").new == len(made)
    assert {a.labels for r in records(studio, ref).values() for a in r.annotations} == {("cat",)}
    assert revert(ref, studio) == Reverted(len(made), 2 * len(made), [])
