"""Redis comes late, goes away and comes back while people label; nothing is restarted by hand."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_backend.adapters.index.exact import ExactIndex
from ml_backend.adapters.processes.servers import LocalRedis
from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.errors import StoreError
from ml_backend.domain.model import LabelState, TaskId
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings
from ml_backend.web.app import create_app
from tests.fakes import World, states_in
from tests.ports import free_port
from tests.waiting import until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalRedis]:
    made = LocalRedis(tmp_path / "redis", port=free_port())
    yield made
    made.stop()


@pytest.fixture
def state(server: LocalRedis) -> Iterator[RedisState]:
    found = RedisState(server.url)
    yield found
    found.close()


def test_a_redis_that_starts_later_is_waited_for(
    server: LocalRedis, state: RedisState, caplog: pytest.LogCaptureFixture
) -> None:
    server.start()
    world = World(state)
    server.stop()
    projects = Projects(world.ports, "http://studio")
    with caplog.at_level(logging.INFO):
        projects.start()
        time.sleep(3.0)  # several attempts
        assert not list(projects)
        assert len([r for r in caplog.records if "doesn't answer" in r.getMessage()]) == 1
        server.start()
        assert until(lambda: [project.ref.id for project in projects] == [1])
        assert until(lambda: ("sync", {}) in world.jobs.asked)
    projects.stop()


def test_an_outage_while_people_label_loses_nothing(server: LocalRedis, state: RedisState) -> None:
    server.start()
    world = World(state)
    projects = Projects(world.ports, "http://studio")
    projects.start()
    assert until(lambda: bool(list(projects)))
    world.answer(TaskId(1))
    server.stop()
    began = time.monotonic()
    with pytest.raises(StoreError):  # Label Studio has the label; the webhook is answered at once
        world.answer(TaskId(2))
    assert time.monotonic() - began < 1.0
    assert until(lambda: projects._lost)
    world.jobs.asked.clear()
    server.start()
    assert until(lambda: ("sync", {}) in world.jobs.asked), "what was missed is fetched at once"
    assert {a.task for a in state.annotations(world.ref)} == {1}, "what was noted before is still there"
    world.answer(TaskId(3))
    projects.stop()


def test_an_index_that_goes_away_is_done_without_complained_of_once_and_built_anew(
    server: LocalRedis, state: RedisState, caplog: pytest.LogCaptureFixture
) -> None:
    server.start()
    world = World(state)
    projects = Projects(world.ports, "http://studio")
    projects.start()
    assert until(lambda: bool(list(projects)))
    client = create_app(Settings(_env_file=None), projects).test_client()
    result = [{"type": "choices", "from_name": "label", "value": {"choices": ["a"]}}]
    annotation = {"id": 1, "task": 2, "completed_by": 1, "result": result}
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 1}, "annotation": annotation}
    task = {"id": 5, "data": {}}

    def away(*given: object, **more: object) -> int:
        raise StoreError("The Qdrant server is away.")

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.ERROR, "ml_backend.services"):
        for name in ("mark", "neighbours", "upsert", "__len__"):
            patch.setattr(ExactIndex, name, away)
        assert client.post("/webhook", json=event).status_code == 200
        project = projects.get(1)
        following = project.queue.sessions[1].next
        assert world.label_of(following) == world.label_of(TaskId(2)), "the chain goes on"
        found = client.post("/predict", json={"project": "1", "tasks": [task]}).json["results"]
        assert found[0]["result"][0]["value"]["choices"] == ["a"]
        time.sleep(5.0)
        assert projects._lost
        assert ("sync", {}) not in world.jobs.asked
        keeper = [r for r in caplog.records if r.name == "ml_backend.services.serving.registry"]
        assert len(keeper) == 1
    assert until(lambda: ("sync", {}) in world.jobs.asked), "what was missed is fetched once it is back"
    assert until(lambda: not projects._lost)
    assert until(lambda: states_in(world.index)[2] is LabelState.LABELLED), "and hears of it now"
    projects.stop()
