"""Redis, Label Studio or Qdrant take requests and never answer; whoever waits for us is answered in time."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from ml_backend.adapters.index.qdrant import QdrantIndex
from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.adapters.processes.servers import LocalRedis
from ml_backend.adapters.redis.jobs import RqJobs
from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.events import StrategyChosen
from ml_backend.domain.model import ProjectRef
from ml_backend.services.serving import maintenance
from ml_backend.services.serving.loading import ProjectPorts
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings
from ml_backend.web.app import create_app
from tests.fakes import CONFIG, World
from tests.serving import serving
from tests.waiting import until

SOON = 2.0
"""Seconds within which everything is answered here: the budget is 0.8, and test machines are busy."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalRedis]:
    made = LocalRedis(tmp_path / "redis")
    made.start()
    yield made
    os.kill(made.pid, signal.SIGCONT)
    made.stop()


@pytest.fixture
def world(server: LocalRedis) -> Iterator[World]:
    state = RedisState(server.url)
    yield World(state)
    state.close()


@pytest.fixture
def opened(world: World) -> Iterator[Callable[[ProjectPorts], tuple[Projects, FlaskClient]]]:
    """Running projects over these ports, loaded, and their web app."""
    running: list[Projects] = []

    def start(ports: ProjectPorts) -> tuple[Projects, FlaskClient]:
        projects = Projects(ports, "http://studio")
        running.append(projects)
        projects.start()
        assert until(lambda: bool(list(projects)))
        return projects, create_app(Settings(_env_file=None), projects).test_client()

    yield start
    for projects in running:
        projects.stop()


def submit(client: FlaskClient, task: int, project: int = 1) -> tuple[int, float]:
    """The status and the seconds of an answer's webhook."""
    result = [{"type": "choices", "from_name": "label", "value": {"choices": ["a"]}}]
    annotation = {"id": task, "task": task, "completed_by": 1, "result": result}
    body = {"action": "ANNOTATION_CREATED", "project": {"id": project}, "annotation": annotation}
    return timed(lambda: client.post("/webhook", json=body))


def open_task(client: FlaskClient, task: int) -> tuple[int, float]:
    """The status and the seconds of what Label Studio asks when somebody opens a task."""
    body = {"project": "1.5", "tasks": [{"id": task, "data": {}}]}
    return timed(lambda: client.post("/predict", json=body))


def timed(ask: Callable[[], Any]) -> tuple[int, float]:
    began = time.monotonic()
    status = ask().status_code
    return status, time.monotonic() - began


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=200)) as listener:
        yield listener.getsockname()[1]


def test_while_redis_hangs_everybody_is_answered_in_time_and_all_is_caught_up_with(
    server: LocalRedis, world: World, opened: Callable[[ProjectPorts], tuple[Projects, FlaskClient]]
) -> None:
    jobs = RqJobs(server.url)  # the real one: it must not be waited for either
    projects, client = opened(replace(world.ports, jobs=jobs))
    assert submit(client, 1)[0] == 200
    os.kill(server.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(8) as people:
        for _ in range(4):
            asked = [people.submit(submit, client, 2) for _ in range(3)]
            asked += [people.submit(open_task, client, task) for task in (3, 999)]
            assert timed(lambda: client.get("/health"))[1] < SOON
            assert [each.result()[0] for each in asked] == [503] * len(asked)
            assert max(each.result()[1] for each in asked) < SOON
    os.kill(server.pid, signal.SIGCONT)
    assert until(lambda: not projects._lost)
    assert until(lambda: jobs.waits("sync", world.ref)), "what was missed is fetched"
    assert submit(client, 4)[0] == 200


class Unanswered(BaseHTTPRequestHandler):
    """A Label Studio that takes every request and never answers."""

    asked: list[str]
    go: threading.Event

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        self.go.wait(60)

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hanging_studio() -> Iterator[tuple[HttpLabelStudio, list[str]]]:
    handler = type("Hanging", (Unanswered,), {"asked": [], "go": threading.Event()})
    with serving(handler) as url:
        studio = HttpLabelStudio(url, "token", prediction_timeout=0.8)
        yield studio, handler.asked
        handler.go.set()
        studio.close()


def test_while_label_studio_hangs_submits_are_noted_and_other_processes_heard(
    world: World,
    opened: Callable[[ProjectPorts], tuple[Projects, FlaskClient]],
    hanging_studio: tuple[HttpLabelStudio, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(maintenance, "TURN_SECONDS", 3.0)
    studio, asked = hanging_studio
    other = ProjectRef("http://studio", 2)
    world.state.set_options(other, label_config=CONFIG)
    projects, client = opened(replace(world.ports, studio=studio))
    assert until(lambda: len(list(projects)) == 2)
    assert until(lambda: any("predictions" in path for path in asked)), "a refill stands"
    for task in (1, 2, 3):
        status, seconds = submit(client, task)
        assert (status, seconds < SOON) == (200, True)
        assert open_task(client, task + 10)[1] < SOON
    assert {annotation.task for annotation in world.state.annotations(world.ref)} == {1, 2, 3}
    world.state.set_options(world.ref, strategy="margin")
    world.state.publish(world.ref, StrategyChosen())
    assert until(lambda: projects.get(1).queue.strategy == "margin", 15)


@pytest.mark.parametrize("count", [30, 200])
def test_while_qdrant_hangs_from_the_start_people_label_with_suggestions_and_chains(
    server: LocalRedis,
    opened: Callable[[ProjectPorts], tuple[Projects, FlaskClient]],
    silent: int,
    count: int,
) -> None:
    with closing(RedisState(server.url)) as state, pytest.MonkeyPatch.context() as patch:
        patch.setattr("ml_backend.adapters.index.qdrant.PATIENCE", 1.0)
        world = World(state, count=count)
        ports = replace(
            world.ports, open_index=lambda ref: QdrantIndex(f"http://127.0.0.1:{silent}", ref.slug)
        )
        projects, client = opened(ports)
        for task in (1, 4, 7):
            status, seconds = submit(client, task)
            assert (status, seconds < SOON) == (200, True)
            following = projects.get(1).queue.sessions[1].next
            assert world.region[following - 1] == 0, "the chain goes on"
        status, seconds = open_task(client, 10)
        assert (status, seconds < SOON) == (200, True)
        projects.stop()
