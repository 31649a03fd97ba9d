"""Every webhook that Label Studio 1.23.2 sends, as recorded by ``tests/record_webhooks.py``, and odd ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from ml_backend.domain.model import TaskId
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings
from ml_backend.web.app import create_app
from tests.fakes import CONFIG, World
from tests.waiting import until

FOLDER = Path(__file__).parents[1] / "fixtures" / "label_studio_1.23.2" / "webhooks"
RECORDED = sorted(path.stem for path in FOLDER.glob("*.json"))
SYNC = ("sync", {})


@pytest.fixture
def projects(world: World) -> Iterator[Projects]:
    made = Projects(world.ports, "http://studio")
    made._loaded[1] = world.project
    yield made
    made.stop()


@pytest.fixture
def client(projects: Projects) -> FlaskClient:
    return create_app(Settings(_env_file=None), projects).test_client()


def body_of(name: str) -> dict[str, Any]:
    """The recorded body, as if it were about the world's project."""
    body: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())["body"]
    if "project" in body:
        body["project"] |= {"id": 1} | ({"label_config": CONFIG} if len(body["project"]) > 1 else {})
    return body


def row(number: int, task: Any, label: str = "a", **fields: Any) -> dict[str, Any]:
    value = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
    return {"id": number, "task": task, "completed_by": 1, "result": [value], **fields}


def sent(client: FlaskClient, action: str, **body: Any) -> Any:
    return client.post("/webhook", json={"action": action, "project": {"id": 1}, **body})


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_webhook_is_taken(client: FlaskClient, name: str) -> None:
    answer = client.post("/webhook", json=body_of(name))
    assert answer.status_code == 200, answer.json
    assert answer.json == {"status": "ok"}


@pytest.mark.parametrize("name", [name for name in RECORDED if "bare" in name])
def test_without_a_payload_label_studio_is_asked(client: FlaskClient, world: World, name: str) -> None:
    client.post("/webhook", json=body_of(name))
    assert until(lambda: SYNC in world.jobs.asked)


@pytest.mark.parametrize(
    ("action", "more"),
    [
        ("ANNOTATIONS_CREATED", {}),
        ("ANNOTATIONS_DELETED", {"annotations": []}),
        ("TASKS_CREATED", {}),
        ("TASKS_DELETED", {"tasks": None}),
        ("PROJECT_UPDATED", {}),
        ("PROJECT_DELETED", {}),
    ],
)
def test_an_action_that_says_nothing_but_its_project_has_it_asked(
    client: FlaskClient, world: World, action: str, more: dict[str, Any]
) -> None:
    assert sent(client, action, **more).status_code == 200
    assert until(lambda: world.jobs.asked == [SYNC])


def test_answers_that_came_with_an_import_are_asked_for(client: FlaskClient, world: World) -> None:
    client.post("/webhook", json=body_of("import_three__0_webhook_TASKS_CREATED"))
    assert until(lambda: world.project.pool.has(TaskId(3)))
    assert SYNC not in world.jobs.asked
    client.post("/webhook", json=body_of("import_answered__0_webhook_TASKS_CREATED"))
    assert until(lambda: SYNC in world.jobs.asked)


def test_many_annotations_are_noted_and_make_one_front(client: FlaskClient, world: World) -> None:
    world.settle()
    before = world.studio.writes
    body = body_of("bulk_submit__0_webhook_ANNOTATIONS_CREATED")
    assert client.post("/webhook", json=body).status_code == 200
    assert {it.task for it in world.state.annotations(world.ref)} == {it["task"] for it in body["annotation"]}
    assert world.studio.writes - before <= 1
    assert [session.next for session in world.queue.sessions.values()] == [world.studio.serve(1)]


def test_many_annotations_of_several_people_make_one_front_for_each(
    client: FlaskClient, world: World
) -> None:
    world.settle()
    before = world.studio.writes
    rows = [row(n, n, world.label_of(TaskId(n)), completed_by=n % 2 + 1) for n in range(1, 21)]
    sent(client, "ANNOTATIONS_CREATED", annotation=rows)
    assert len(world.state.annotations(world.ref)) == 20
    assert world.studio.writes - before <= 2
    fronts = [session.next for session in world.queue.sessions.values()]
    assert len(set(fronts)) == 2
    assert all(world.project.pool.is_open(task) for task in fronts if task is not None)


@pytest.mark.parametrize("key", ["annotation", "annotations"])
@pytest.mark.parametrize("odd", [None, 7, "x", {}, {"id": 2}, {"id": 2, "task": -1}, {"id": "?", "task": 2}])
def test_one_malformed_annotation_loses_no_other(
    client: FlaskClient, world: World, key: str, odd: Any
) -> None:
    answer = sent(client, "ANNOTATIONS_CREATED", **{key: [row(1, 1), odd, row(3, 3)]})
    assert answer.status_code == 200
    assert [said[:6] for said in answer.json["left_out"]] == ["row 1:"]
    assert {it.task for it in world.state.annotations(world.ref)} == {1, 3}
    assert world.jobs.asked == [SYNC], "what can't be read here is read from Label Studio"


def test_malformed_ids_among_deleted_ones_lose_no_other(client: FlaskClient, world: World) -> None:
    sent(client, "ANNOTATIONS_CREATED", annotation=[row(1, 1), row(2, 2)])
    answer = sent(client, "ANNOTATIONS_DELETED", annotations=[{"id": "x"}, {"id": 1}])
    assert len(answer.json["left_out"]) == 1
    assert {it.id for it in world.state.annotations(world.ref)} == {2}
    answer = sent(client, "TASKS_DELETED", tasks=[{}, {"id": 5}])
    assert len(answer.json["left_out"]) == 1
    assert not world.project.pool.has(TaskId(5))
    assert len(sent(client, "TASKS_CREATED", tasks=[{"id": 99}, {"id": []}]).json["left_out"]) == 1
    assert until(lambda: world.project.pool.has(TaskId(99)))


@pytest.mark.parametrize(
    "rows", [{"annotations": [1, 2]}, {"annotation": [1, {"id": 2}]}, {"annotations": ["1", "2"]}]
)
def test_deleted_annotations_may_come_as_their_bare_ids_under_either_name(
    client: FlaskClient, world: World, rows: dict[str, Any]
) -> None:
    sent(client, "ANNOTATIONS_CREATED", annotation=[row(number, number) for number in (1, 2, 3)])
    assert sent(client, "ANNOTATIONS_DELETED", **rows).json == {"status": "ok"}
    assert {it.id for it in world.state.annotations(world.ref)} == {3}


@pytest.mark.parametrize("rows", [{"tasks": [5, 6]}, {"task": {"id": 5}}])
def test_deleted_tasks_may_come_as_their_bare_ids_under_either_name(
    client: FlaskClient, world: World, rows: dict[str, Any]
) -> None:
    assert sent(client, "TASKS_DELETED", **rows).json == {"status": "ok"}
    assert not world.project.pool.has(TaskId(5))


@pytest.mark.parametrize("project", [1, "1"])
def test_the_project_may_be_its_bare_id(client: FlaskClient, world: World, project: Any) -> None:
    body = {"action": "ANNOTATION_CREATED", "project": project, "annotation": row(1, 1)}
    assert client.post("/webhook", json=body).status_code == 200
    assert len(world.state.annotations(world.ref)) == 1


def test_nothing_but_malformed_rows_is_a_400(client: FlaskClient, world: World) -> None:
    answer = sent(client, "ANNOTATIONS_CREATED", annotation=[{"id": 1}, 3])
    assert answer.status_code == 400
    assert "task" in answer.json["error"]


def test_a_malformed_task_costs_no_annotation(client: FlaskClient, world: World) -> None:
    assert (
        sent(client, "ANNOTATIONS_CREATED", annotation=[row(1, 1)], task=[3, {"id": {}}]).status_code == 200
    )
    assert len(world.state.annotations(world.ref)) == 1
