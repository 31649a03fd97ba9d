"""The sync job: what it has embedded, and what it leaves for later."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ml_backend import jobs
from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.content_hash import address_digest
from ml_backend.domain.model import ProjectRef, Task, TaskId, TaskRecord
from ml_backend.domain.unread import Unread
from ml_backend.services.connecting.doctor import backend, images
from ml_backend.services.connecting.doctor.context import CheckContext
from tests.fakes import CONFIG, FakeLabelStudio, World


class Studio(FakeLabelStudio):
    """A Label Studio with three images."""

    def project(self, project: int) -> dict[str, Any]:
        return {"id": project, "label_config": CONFIG}

    def records(self, project: int, control: object = None) -> Iterator[TaskRecord]:
        for number in (1, 2, 3):
            yield TaskRecord(Task(TaskId(number), {"image": f"/data/{number}.png"}))


class Here:
    """What jobs see of the world."""

    def __init__(self, world: World) -> None:
        self.state, self.studio, self.jobs = world.state, world.studio, world.jobs
        self.settings, self.artifacts, self.set = world.ports.settings, world.ports.artifacts, world.features

    def feature_set(self, ref: ProjectRef) -> str:
        return "plain"

    def features(self, name: str) -> Any:
        return self.set


@pytest.fixture
def world(state: RedisState, monkeypatch: pytest.MonkeyPatch) -> World:
    found = World(state, count=0, embedded=False, studio=Studio())
    monkeypatch.setattr(jobs, "container", lambda: Here(found))
    return found


@pytest.fixture
def asked(world: World) -> Callable[..., list[str]]:
    """The addresses of which a sync asks for the images."""

    def sync(**more: Any) -> list[str]:
        world.jobs.asked.clear()
        jobs.sync(world.ref, **more)
        given = [arguments["images"].values() for job, arguments in world.jobs.asked if job == "ingest"]
        return sorted(address for some in given for address in some)

    return sync


def test_an_image_that_cannot_be_read_waits_for_its_next_try(
    world: World, asked: Callable[..., list[str]]
) -> None:
    every = [f"/data/{number}.png" for number in (1, 2, 3)]
    assert asked() == every
    later = Unread(TaskId(2), "answered 404", 3, time.time() + 60)
    world.state.set_unread(world.ref, {address_digest(every[1]): later})
    for _ in range(3):
        assert asked() == [every[0], every[2]]
    world.state.set_unread(
        world.ref,
        {
            address_digest(every[1]): Unread(TaskId(2), "answered 404", 3, time.time() - 1),
            address_digest(every[2]): Unread(TaskId(3), "answered 404", 10, math.inf),
        },
    )
    assert asked() == [every[0], every[1]]
    assert asked(again=True) == every, "a person asks"
    assert world.state.unread(world.ref) == {}


def test_doctor_lists_what_cannot_be_read_and_what_was_given_up(world: World) -> None:
    context = CheckContext(world.ref, world.studio, world.state, world.ports.settings)
    assert [*images.unread(context), *backend.given_up(context)] == []
    found = {f"{n:016x}": Unread(TaskId(n), f"{n} answered 404.", n, time.time() + 600) for n in range(1, 13)}
    found["0" * 16] = Unread(TaskId(50), "Reading it killed a worker 2 times.", 2, math.inf)
    world.state.set_unread(world.ref, found)
    faults = list(images.unread(context))
    assert len(faults) == images.SHOWN + 1
    assert all(fault.warning for fault in faults)
    assert "task 1 " in faults[0].problem
    assert faults[0].value == "1 answered 404. again in 10 min"
    assert faults[1].value == "2 answered 404. tried 2 times, again in 10 min"
    assert faults[0].fix.endswith("rush sync --project 1")
    assert faults[-1].value == "13 in all"


def test_pruning_is_queued_by_the_first_sync_of_a_day(world: World) -> None:
    for _ in range(3):
        jobs.sync(world.ref)
    assert [job for job, _ in world.jobs.asked].count("prune") == 1
