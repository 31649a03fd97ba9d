"""RushModel under label-studio-ml's own hosts."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "label_studio_1.23.2"

HOST = """
import json, sys, time
from label_studio_ml.api import init_app
from ml_backend import model

requests, folder = json.loads(sys.argv[1]), sys.argv[2]
client = init_app(model.RushModel, model_dir=folder).test_client()
answers = {}
for path in ("/health", "/setup", "/predict"):
    body = requests[path]
    answer = client.get(path) if body is None else client.post(path, json=body)
    answers[path] = [answer.status_code, answer.get_json()]
projects = model._projects()
deadline, tries = time.monotonic() + 90, 0
while not projects.get(1).pool.counts()["labelled"] and time.monotonic() < deadline:
    if tries < 3:
        answers["/webhook"] = [client.post("/webhook", json=requests["/webhook"]).status_code]
        tries += 1
    until = time.monotonic() + 30
    while not projects.get(1).pool.counts()["labelled"] and time.monotonic() < until:
        time.sleep(0.1)
answers["counts"] = projects.get(1).pool.counts()
projects.stop()
print("ANSWERS" + json.dumps(answers))
"""
"""1.0.9's host in a process of its own: it changes how processes start in the one that imports it."""


def request(name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text())["body"]
    return body


def unknown_tasks(*numbers: int) -> list[dict[str, Any]]:
    task = request("open_task__2_predict")["tasks"][0]
    return [task | {"id": number, "data": {"image": f"/data/upload/1/{number}.png"}} for number in numbers]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, redis_url: str, tmp_path: Path) -> None:
    """Settings of a Label Studio that can't be reached, one of its own for each test."""
    monkeypatch.setenv("RUSH_DATA_DIR", str(tmp_path / "rush"))
    monkeypatch.setenv("RUSH_REDIS_URL", redis_url)
    monkeypatch.setenv("RUSH_SYNC_SECONDS", "0")
    monkeypatch.setenv("LABEL_STUDIO_URL", f"http://127.0.0.1:9/{tmp_path.name}")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)


def test_runs_under_the_host_of_1_0_9(environment: None, tmp_path: Path) -> None:
    requests = {
        "/health": None,
        "/setup": request("next__1_setup"),
        "/predict": request("open_task__2_predict") | {"tasks": unknown_tasks(3, 1, 2)},
        "/webhook": request("submit__0_webhook_ANNOTATION_CREATED"),
    }
    command = [sys.executable, "-c", HOST, json.dumps(requests), str(tmp_path / "models")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, cwd=FIXTURES.parents[2], check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.rpartition("ANSWERS")[2])

    assert answers["/health"][1]["status"] == "UP"
    assert answers["/setup"][0] == 200
    status, body = answers["/predict"]
    assert status == 200
    assert [row["result"] for row in body["results"]] == [[], [], []]
    scores = [row["score"] for row in body["results"]]
    assert len(set(scores)) == 3
    assert answers["/webhook"] == [201]
    assert answers["counts"]["labelled"] == 1, done.stderr[-3000:]


# ---- 2.x, which is not on the package index


class Base:
    """The constructor and the store that 2.x gives its models."""

    kept: dict[tuple[str, str], str]

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.set("label_config", label_config)
        self.setup()

    def setup(self) -> None:
        raise NotImplementedError

    def get(self, key: str) -> str | None:
        return self.kept.get((self.project_id, key))

    def set(self, key: str, value: str) -> None:
        self.kept[self.project_id, key] = value

    @property
    def label_config(self) -> str | None:
        return self.get("label_config")

    @property
    def model_version(self) -> str | None:
        return self.get("model_version")


@pytest.fixture
def module(environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``ml_backend.model`` over 2.x's conventions."""
    base = ModuleType("label_studio_ml.model")
    base.LabelStudioMLBase = type("LabelStudioMLBase", (Base,), {"kept": {}})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "label_studio_ml", ModuleType("label_studio_ml"))
    monkeypatch.setitem(sys.modules, "label_studio_ml.model", base)
    monkeypatch.delitem(sys.modules, "ml_backend.model", raising=False)
    found = importlib.import_module("ml_backend.model")
    yield found
    for projects in found._running.values():
        projects.stop()
        projects.ports.studio.close()
        projects.ports.state.close()
    sys.modules.pop("ml_backend.model", None)


@pytest.fixture
def new(module: Any) -> Callable[..., Any]:
    """Models as 2.x's host makes one for each request."""

    def make(project: str = "1", config: str = request("next__1_setup")["schema"]) -> Any:
        return module.RushModel(project, label_config=config)

    return make


def test_setup_of_2_x_names_the_version_and_connects_the_project(
    module: Any, new: Callable[..., Any]
) -> None:
    assert new().get("model_version") == "rush"
    assert module._projects().get(1).control.classes == ("cat", "dog", "bird")


def test_predict_of_2_x_answers_every_task_in_order(new: Callable[..., Any]) -> None:
    first = new().predict(unknown_tasks(3, 1, 2), context=None, login=None, password=None)
    again = new().predict(unknown_tasks(2, 3, 1), context={"result": []})
    assert [row["result"] for row in first] == [[], [], []]
    scores = [row["score"] for row in first]
    assert [row["score"] for row in again] == [scores[2], scores[0], scores[1]]
    assert new().predict([]) == []


def test_fit_of_2_x_takes_the_label_in_at_once(module: Any, new: Callable[..., Any]) -> None:
    body = request("submit__0_webhook_ANNOTATION_CREATED")
    event = body.pop("action")
    new().fit(event, body)
    assert module._projects().get(1).pool.counts()["labelled"] == 1


def test_a_changed_label_config_reaches_the_project(module: Any, new: Callable[..., Any]) -> None:
    new()
    new(config=request("next__1_setup")["schema"].replace("bird", "fish"))
    assert module._projects().get(1).control.classes == ("cat", "dog", "fish")


def test_requests_at_once_share_one_set_of_projects(module: Any, new: Callable[..., Any]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: id(module._projects()), range(32)))
    assert len(set(found)) == 1


def test_a_child_of_the_host_passes_its_webhook_on(module: Any, new: Callable[..., Any]) -> None:
    new()
    body = request("submit__0_webhook_ANNOTATION_CREATED")
    event = body.pop("action")
    project = module._projects().get(1)
    deadline = time.monotonic() + 30
    while not project.pool.counts()["labelled"] and time.monotonic() < deadline:
        new().fit((), event=event, data=body, job_id="1", workdir="unused")
        time.sleep(0.5)
    assert project.pool.counts()["labelled"] == 1


def test_a_host_that_names_no_project_gives_none_the_config_of_another(
    module: Any, new: Callable[..., Any]
) -> None:
    new()
    other = new(project="", config=request("next__1_setup")["schema"].replace("bird", "fish"))
    assert [row["result"] for row in other.predict(unknown_tasks(1))] == [[]]
    assert module._projects().get(1).control.classes == ("cat", "dog", "bird")


def test_fit_of_2_x_takes_in_many_labels_at_once_and_events_without_payload(
    module: Any, new: Callable[..., Any]
) -> None:
    body = request("webhooks/bulk_submit__0_webhook_ANNOTATIONS_CREATED")
    assert body.pop("action") in module.RushModel.TRAIN_EVENTS
    new().fit("ANNOTATIONS_CREATED", body)
    assert {1, 2, 3} <= {it.task for it in module._projects().get(1).pool.annotations.values()}
    new().fit("ANNOTATIONS_CREATED", {})
