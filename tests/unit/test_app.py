"""The web host over real state: Label Studio's recorded requests, and whatever can be wrong with one."""

import base64
import gc
import io
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from ml_backend.domain.model import ProjectRef
from ml_backend.services.serving.project import Project
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings
from ml_backend.web.app import create_app
from tests.fakes import CONFIG, World
from tests.waiting import until

FIXTURES = sorted((Path(__file__).parents[1] / "fixtures" / "label_studio_1.23.2").glob("*.json"))


@pytest.fixture
def client(client_of: Callable[..., FlaskClient]) -> FlaskClient:
    return client_of()


@pytest.mark.parametrize("project", [999, "999", None])
def test_training_of_a_project_that_is_not_there_is_refused_and_leaves_no_trace(
    client: FlaskClient, world: World, project: int | str | None
) -> None:
    answer = client.post("/train", json={"project": project})
    assert answer.status_code == 404
    assert answer.json["hint"]
    assert world.jobs.asked == []
    assert world.state.projects() == [world.ref]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_every_recorded_request_is_answered(client: FlaskClient, path: Path) -> None:
    recorded = json.loads(path.read_text())
    answer = client.open(recorded["path"], method=recorded["method"], json=recorded["body"])
    assert answer.status_code == 200, answer.json
    if recorded["path"] == "/predict":
        assert len(answer.json["results"]) == len(recorded["body"]["tasks"])


def test_setup_names_the_version_that_the_queue_is_filtered_by(client: FlaskClient) -> None:
    assert client.post("/setup", json={"project": "1.5", "schema": CONFIG}).json == {"model_version": "rush"}


def slow_to_load(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[Projects, threading.Event]:
    """Projects of which number 1 is loaded only once the event is set."""
    projects, go = Projects(world.ports, "http://studio"), threading.Event()
    real = projects._open

    def slow(ref: ProjectRef) -> Project:
        if ref.id == 1:
            assert go.wait(30)
        return real(ref)

    monkeypatch.setattr(projects, "_open", slow)
    return projects, go


def test_setup_answers_while_the_project_is_still_loading(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects, go = slow_to_load(world, monkeypatch)
    client = create_app(Settings(_env_file=None), projects).test_client()
    changed = CONFIG.replace('<Choice value="c"/>', '<Choice value="d"/>')
    assert client.post("/setup", json={"project": "1.5", "schema": changed}).status_code == 200
    assert not list(projects)
    go.set()
    assert until(lambda: ["d" in project.control.classes for project in projects] == [True])
    projects.stop()


def test_a_webhook_that_comes_while_the_project_is_loading_is_taken_in_afterwards(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects, go = slow_to_load(world, monkeypatch)
    client = create_app(Settings(_env_file=None), projects).test_client()
    result = [{"type": "choices", "from_name": "label", "value": {"choices": ["a"]}}]
    annotation = {"id": 1, "task": 2, "completed_by": 1, "result": result}
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 1}, "annotation": annotation}
    began = time.monotonic()
    assert client.post("/webhook", json=event).status_code == 200
    assert time.monotonic() - began < 1.0, "Label Studio waits one second"
    go.set()
    assert until(lambda: [project.pool.counts()["labelled"] for project in projects] == [1])
    projects.stop()


def test_few_requests_wait_for_a_project_that_is_loading(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects, go = slow_to_load(world, monkeypatch)
    body = {"project": "1.5", "tasks": [{"id": 1, "data": {}}]}

    def ask() -> int:
        return app.test_client().post("/predict", json=body).status_code

    app = create_app(Settings(_env_file=None), projects)
    with ThreadPoolExecutor(8) as people:
        asked = [people.submit(ask) for _ in range(8)]
        assert until(lambda: sum(each.done() for each in asked) == 5), "refused at once"
        go.set()
        assert sorted(each.result() for each in asked) == [200] * 3 + [503] * 5
    projects.stop()


def test_a_project_that_takes_long_to_load_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects, go = slow_to_load(world, monkeypatch)
    world.state.set_options(ProjectRef("http://studio", 2), label_config=CONFIG)
    client = create_app(Settings(_env_file=None), projects).test_client()
    assert client.post("/setup", json={"project": "1.5", "schema": CONFIG}).status_code == 200
    body = {"project": "2.5", "tasks": [{"id": 1, "data": {}}]}
    assert client.post("/predict", json=body).status_code == 200
    assert [project.ref.id for project in projects] == [2]
    go.set()
    projects.stop()


def test_predictions_keep_length_and_order_and_are_empty_for_unknown_images(
    client: FlaskClient, world: World
) -> None:
    world.answer(world.tasks[0], "a")
    tasks = [{"id": number, "data": {}} for number in (7, 999, 4, 7)]
    results = client.post("/predict", json={"tasks": tasks, "project": "1.0"}).json["results"]
    shown = [row["result"] and row["result"][0]["value"]["choices"] for row in results]
    assert shown == [["a"], [], ["a"], ["a"]]


def test_a_submit_moves_the_queue(client: FlaskClient, world: World) -> None:
    body = json.loads(next(p for p in FIXTURES if p.stem.startswith("submit__")).read_text())["body"]
    assert client.post("/webhook", json=body).status_code == 200
    assert world.state.annotations(world.ref)[0].id == 1
    assert world.studio.serve(1) is not None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"tasks": 3}'])
@pytest.mark.parametrize("path", ["/predict", "/webhook"])
def test_what_can_not_be_read_is_a_400_with_a_message(client: FlaskClient, path: str, body: bytes) -> None:
    answer = client.post(path, data=body)
    assert answer.status_code == 400
    assert answer.json["error"]
    assert "Traceback" not in answer.text


def test_an_unknown_project_is_a_404_that_says_how_to_connect(client: FlaskClient) -> None:
    answer = client.post("/predict", json={"tasks": [], "project": "77.1"})
    assert answer.status_code == 404
    assert "rush connect --project 77" in answer.json["hint"]


def test_a_config_with_nothing_to_predict_is_a_422_and_changes_nothing(
    client: FlaskClient, world: World
) -> None:
    answer = client.post(
        "/setup", json={"project": "1.5", "schema": '<View><Text name="t" value="$t"/></View>'}
    )
    assert answer.status_code == 422
    assert world.state.options(world.ref)["label_config"] == CONFIG


def test_a_body_over_the_limit_is_a_413(client_of: Callable[..., FlaskClient]) -> None:
    answer = client_of(max_body_mb=0.01).post("/predict", data=b"x" * 20_000)
    assert answer.status_code == 413


def test_a_body_that_does_not_say_how_long_it_is_is_cut_off_at_the_limit(
    client_of: Callable[..., FlaskClient],
) -> None:
    body = io.BytesIO(b"x" * 200_000)
    answer = client_of(max_body_mb=0.01).post(
        "/predict",
        input_stream=body,
        headers={"Transfer-Encoding": "chunked"},
        environ_overrides={"wsgi.input_terminated": True},  # as gunicorn says of chunks
    )
    assert answer.status_code == 413
    assert body.tell() < 100_000
    assert "RUSH_MAX_BODY_MB" in answer.json["hint"]


def test_an_unknown_path_is_a_404(client: FlaskClient) -> None:
    assert client.get("/nothing").status_code == 404
    assert client.get("/predict").status_code == 405


@pytest.mark.parametrize("given", [None, "rush:wrong", "someone:right", ":"])
def test_wrong_or_missing_credentials_are_a_401(
    client_of: Callable[..., FlaskClient], given: str | None
) -> None:
    client = client_of(basic_auth_user="rush", basic_auth_password="right")
    headers = {"Authorization": "Basic " + base64.b64encode(given.encode()).decode()} if given else {}
    assert client.post("/setup", json={}, headers=headers).status_code == 401
    right = {"Authorization": "Basic " + base64.b64encode(b"rush:right").decode()}
    assert client.post("/setup", json={}, headers=right).status_code == 200
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(("token", "given", "status"), [("t0ken", "t0ken", 200), ("t0ken", "other", 401)])
def test_the_token_opens_as_well(
    client_of: Callable[..., FlaskClient], token: str, given: str, status: int
) -> None:
    client = client_of(basic_auth_user="rush", basic_auth_password="right", token=token)
    assert client.get("/status", headers={"Authorization": f"Bearer {given}"}).status_code == status


@pytest.mark.parametrize("given", ["Bearer", "Bearer ", "Bearer rush", "Basic !!", "Digest x=1"])
def test_where_no_token_is_set_none_opens(client_of: Callable[..., FlaskClient], given: str) -> None:
    client = client_of(basic_auth_user="rush", basic_auth_password="right")
    assert client.get("/status", headers={"Authorization": given}).status_code == 401


def test_a_webhook_without_the_secret_is_a_401_and_notes_nothing(
    world: World, client_of: Callable[..., FlaskClient]
) -> None:
    client = client_of(webhook_secret="word")
    body = {"action": "START_TRAINING", "project": {"id": 1}}
    assert client.post("/webhook", json=body).status_code == 401
    assert world.jobs.asked == []
    assert client.post("/webhook", json=body, headers={"X-Rush-Secret": "word"}).status_code == 200
    assert world.jobs.asked == [("train", {"force": True})]


def test_a_failure_of_ours_shows_no_traceback_and_is_logged_once(
    client: FlaskClient, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def enqueue(self, *arguments: Any, **more: Any) -> None:
            raise RuntimeError("secret detail")

    object.__setattr__(world.ports, "jobs", Broken())
    with caplog.at_level(logging.WARNING):
        answer = client.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 1}})
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert [r for r in caplog.records if answer.json["request_id"] in r.getMessage()] == caplog.records
    assert len(caplog.records) == 1


def test_an_error_has_a_code_for_programs_a_hint_for_people_and_a_request_id(client: FlaskClient) -> None:
    answer = client.post("/predict", json={"tasks": [], "project": "99"})
    assert answer.status_code == 404
    assert answer.json["code"] == "not_found"
    assert "rush connect --project 99" in answer.json["hint"]
    assert answer.json["request_id"]
    assert "field" not in answer.json


def test_a_project_that_another_replica_has_taken_over_leaves_the_memory(world: World) -> None:
    class Shared:
        url = there = "http://here"

        def owner(self, project: ProjectRef) -> str:
            return self.there

        def close(self) -> None: ...

    leases = Shared()
    projects = Projects(world.ports, "http://studio", leases)
    project = weakref.ref(projects.get(1))
    projects._tend(projects.get(1))
    leases.there = "http://elsewhere"
    projects._share()
    assert until(lambda: gc.collect() >= 0 and project() is None)
    projects.stop()


def test_a_project_that_nobody_has_connected_is_not_taken_over_again_and_again(world: World) -> None:
    class Alone:
        url = "http://here"

        def owner(self, project: ProjectRef) -> str:
            return self.url

        def close(self) -> None: ...

    world.state.set_options(ProjectRef("http://studio", 2), strategy="margin")
    projects = Projects(world.ports, "http://studio", Alone())
    for _ in range(3):
        projects._share()
    assert world.jobs.asked == [("sync", {})], "of the connected one, once"
    projects.stop()
