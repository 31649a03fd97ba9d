"""Projects that Label Studio has no more, and leftovers: noticed, let alone, deleted when needed no more."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock
from redis import Redis

from ml_backend import jobs
from ml_backend.adapters.files.features import FileFeatures
from ml_backend.adapters.files.leftovers import prune
from ml_backend.adapters.redis.jobs import QUEUES, RqJobs
from ml_backend.adapters.redis.leftovers import prune as prune_redis
from ml_backend.adapters.redis.state import RedisState
from ml_backend.cli.main import main
from ml_backend.domain.errors import LabelStudioError, NotFound, RushError, Unauthorized
from ml_backend.domain.model import ContentKey, PredictionRow, ProjectRef, TaskId
from ml_backend.services.retiring.retire import retired
from ml_backend.services.serving.registry import Projects
from tests.fakes import CONFIG, FakeLabelStudio, World
from tests.serving import serving
from tests.waiting import until


class Studio(FakeLabelStudio):
    """A Label Studio that can say of a project that it isn't there; counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Callable[[], RushError | None] = lambda: None
        self.asked = Counter[str]()

    def project(self, project: int) -> dict[str, Any]:
        self.asked["project"] += 1
        if (error := self.answer()) is not None:
            raise error
        return {"id": project, "label_config": CONFIG}

    def predictions(self, project: int, tasks: Any = None) -> list[PredictionRow]:
        self.asked["predictions"] += 1
        if (error := self.answer()) is not None:
            raise error
        return super().predictions(project, tasks)


def gone() -> RushError:
    return NotFound("GET /api/projects/1/ answered 404: Not found.")


def test_a_project_that_was_deleted_is_asked_about_no_more(state: RedisState) -> None:
    studio = Studio()
    world = World(state, studio=studio)
    projects = Projects(world.ports, "http://studio")
    studio.answer = gone
    projects.start()
    try:
        assert until(lambda: retired(world.ref, state))
        assert until(lambda: not list(projects))
        before = studio.asked.total()
        assert before <= 4
        assert not until(lambda: studio.asked.total() > before, 1.0)
        studio.answer = lambda: None
        assert projects.get(1).ref == world.ref, "Label Studio speaks of it: /setup, /predict or a webhook"
        assert not retired(world.ref, state)
        assert ("sync", {}) in world.jobs.asked
        assert until(lambda: len(studio.rows) > 0), "it is tended again"
    finally:
        projects.stop()


def test_a_project_that_is_gone_when_the_backend_starts_is_not_loaded(state: RedisState) -> None:
    world = World(state)
    state.set_options(world.ref, gone="2026-01-01T00:00:00+00:00")
    projects = Projects(world.ports, "http://studio")
    projects.start()
    try:
        assert not until(lambda: bool(list(projects)), 1.0)
    finally:
        projects.stop()


@pytest.mark.parametrize(
    "error", [LabelStudioError("can't be reached"), Unauthorized("401"), LabelStudioError("403"), None]
)
def test_a_label_studio_that_says_something_else_keeps_its_projects(
    state: RedisState, error: RushError | None
) -> None:
    studio = Studio()
    world = World(state, studio=studio)
    projects = Projects(world.ports, "http://studio")
    first = [gone()]
    studio.answer = lambda: first.pop() if first else error
    projects.start()
    try:
        assert until(lambda: studio.asked["project"] > 0)
        assert not until(lambda: not list(projects), 1.0)
        assert not retired(world.ref, state)
    finally:
        projects.stop()


class Here:
    """What jobs see of the world."""

    def __init__(self, world: World) -> None:
        self.state, self.studio, self.jobs = world.state, world.studio, world.jobs
        self.settings, self.artifacts = world.ports.settings, world.ports.artifacts
        self.features_ = world.features

    def feature_set(self, ref: object) -> str:
        return "plain"

    def features(self, name: str) -> Any:
        return self.features_


def test_jobs_of_a_project_that_is_gone_end_and_a_person_is_told(
    state: RedisState, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = Studio()
    world = World(state, studio=studio)
    monkeypatch.setattr(jobs, "container", lambda: Here(world))
    studio.answer = gone
    jobs.sync(world.ref)
    assert retired(world.ref, state)
    before = studio.asked.total()
    jobs.sync(world.ref)
    jobs.ingest(world.ref, {"1": "/data/upload/1.png"})
    assert studio.asked.total() == before
    with pytest.raises(NotFound):
        jobs.sync(world.ref, again=True)
    stranger = type(world.ref)("http://studio", 99)
    jobs.sync(stranger)
    assert stranger not in state.projects(), "what was never there leaves no trace"
    assert state.tasks(world.ref).keys() == {TaskId(n + 1) for n in range(world.count)}, "nothing is deleted"


class Missing(BaseHTTPRequestHandler):
    """A Label Studio that has project 2 alone."""

    def do_GET(self) -> None:
        there = self.path.startswith("/api/projects/2")
        body = b'{"id": 2}' if there else b'{"detail": "Not found."}'
        self.send_response(200 if there else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: object) -> None: ...


@pytest.fixture
def rush(
    state: RedisState, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str]]]:
    """``rush …`` beside that Label Studio, with state and files of projects 1 and 2."""
    with serving(Missing) as origin:
        for name, value in {
            "LABEL_STUDIO_URL": origin,
            "LABEL_STUDIO_API_KEY": "none",
            "RUSH_REDIS_URL": redis_url,
            "RUSH_DATA_DIR": str(tmp_path),
        }.items():
            monkeypatch.setenv(name, value)
        for number in (1, 2):
            ref = ProjectRef(origin, number)
            state.set_options(ref, label_config=CONFIG)
            state.set_tasks(ref, {TaskId(1): ContentKey("")})
            state.note_reading(ref, "run", ["a"])
            RqJobs(redis_url).enqueue("train", ref)
            for kind in ("projects", "index"):
                (tmp_path / kind / ref.slug / "generation").mkdir(parents=True)

        def run(*arguments: str, said: str = "") -> tuple[int, str]:
            done = CliRunner().invoke(main, arguments, input=said)
            return done.exit_code, done.output

        yield run


def left(redis_url: str, data_dir: Path) -> str:
    with Redis.from_url(redis_url, decode_responses=True) as client:
        queued = [number for name in QUEUES for number in client.lrange(f"rq:queue:{name}", 0, -1)]
        keys = [key for key in client.scan_iter("rush:*") if not key.startswith("rush:waiting")]
        known = client.smembers("rush:projects")
    files = [str(path.relative_to(data_dir)) for path in data_dir.rglob("*")]
    return "\n".join(sorted([*keys, *known, *files, f"{len(queued)} jobs"]))


def test_a_project_is_forgotten_with_all_that_is_kept_of_it_alone(
    rush: Callable[..., tuple[int, str]], redis_url: str, tmp_path: Path
) -> None:
    before = left(redis_url, tmp_path)
    code, said = rush("forget", "--project", "1", said="n\n")
    assert (code, left(redis_url, tmp_path)) == (0, before)
    assert "1 tasks" in said
    code, said = rush("forget", "--project", "1", said="y\n")
    assert code == 0, said
    after = left(redis_url, tmp_path)
    assert "_1" not in after.replace("127.0.0.1_", "")
    assert [line for line in after.splitlines() if "_2" in line or "2]" in line] == [
        line for line in before.splitlines() if "_2" in line or "2]" in line
    ]
    assert after.splitlines()[0] == "1 jobs"
    code, said = rush("forget", "--project", "1", "--yes")
    assert code == 1
    assert "Nothing is kept of a project 1" in said


def test_a_project_that_is_still_there_is_forgotten_only_by_who_is_sure(
    rush: Callable[..., tuple[int, str]], redis_url: str, tmp_path: Path
) -> None:
    before = left(redis_url, tmp_path)
    code, said = rush("forget", "--project", "2", said="y\n")
    assert (code, left(redis_url, tmp_path)) == (1, before)
    assert "--yes" in said
    assert "still in Label Studio" in said
    assert rush("forget", "--project", "2", "--yes")[0] == 0
    assert "2]" not in left(redis_url, tmp_path)


def old(path: Path, days: float = 2.0) -> Path:
    for each in (*path.rglob("*"), path):
        os.utime(each, (time.time() - days * 86_400,) * 2)
    return path


def a_file(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_nobody_needs_goes_a_day_after_it_was_last_touched(tmp_path: Path) -> None:
    manifest = json.dumps({"backbone": "tiny~aa-224"})
    a_file(tmp_path / "projects/unknown_9/generation/00000003-2/manifest.json", manifest)
    a_file(tmp_path / "projects/unknown_9/generation/00000004-2/manifest.json", "damaged")
    for name in ("tiny~aa-224", "tiny~bb-224", "tiny-224", "other-224"):
        old(a_file(tmp_path / f"features/{name}/keys.bin").parent)
    a_file(tmp_path / "features/tiny~cc-224/keys.bin")
    for name in ("aa", "bb", "cc"):
        old(a_file(tmp_path / f"networks/tiny~{name}.safetensors"))
        old(a_file(tmp_path / f"networks/tiny~{name}-224-openvino-2026.1.bin"))
    old(a_file(tmp_path / "networks/tiny-224-openvino-2026.1.xml"))
    old(a_file(tmp_path / "networks/tmpkilled/pixels").parent)
    a_file(tmp_path / "networks/tmpfresh/pixels")
    running = old(a_file(tmp_path / "networks/tmprunning/pixels").parent)
    for slug in ("known_1", "gone_2"):
        old(a_file(tmp_path / f"index/{slug}/segment").parent)
    with FileLock(running / "lock"):
        old(running)
        assert prune(tmp_path, "tiny-224", {"known_1"}) == [
            "index/gone_2",
            "features/other-224",
            "features/tiny~bb-224",
            "networks/tiny~bb-224-openvino-2026.1.bin",
            "networks/tiny~bb.safetensors",
            "networks/tmpkilled",
        ]
        assert prune(tmp_path, "tiny-224", {"known_1"}) == []
    old(running)
    assert prune(tmp_path, "tiny-224", {"known_1"}) == ["networks/tmprunning"]
    assert len(list(tmp_path.glob("projects/*/generation/*"))) == 2, "these go with rush forget only"


def test_jobs_that_no_queue_knows_go_after_a_day(state: RedisState, redis_url: str) -> None:
    RqJobs(redis_url).enqueue("train", ProjectRef("http://studio", 1))
    with Redis.from_url(redis_url, decode_responses=True) as client:
        client.hset("rush:keys", "http://studio /1.png", "0" * 32)
        (kept,) = client.keys("rq:job:*")
        client.hset(kept, "created_at", "2026-01-01T00:00:00Z")
        client.hset("rq:job:lost", "created_at", "2026-01-01T00:00:00Z")
        client.hset("rq:job:fresh", "created_at", datetime.now(UTC).isoformat())
        assert prune_redis(redis_url) == ["rush:keys", "job lost"]
        assert set(client.keys("rq:job:*")) == {kept, "rq:job:fresh"}


def test_features_that_were_deleted_are_made_anew_by_who_had_them_open(tmp_path: Path) -> None:
    features = FileFeatures(tmp_path, "tiny-224", 4)
    key, other = ContentKey("0" * 31 + "1"), ContentKey("0" * 31 + "2")
    features.append([key], np.ones((1, 4)))
    shutil.rmtree(tmp_path / "tiny-224")
    assert features.missing([key]) == [key]
    features.append([other], np.ones((1, 4)))
    assert features.missing([key, other]) == [key]
    assert FileFeatures(tmp_path, "tiny-224", 4).get([other]).tolist() == [[1.0] * 4]


def test_pruning_is_asked_for_once_a_day(state: RedisState) -> None:
    assert [state.first_for("prune", 60) for _ in range(3)] == [True, False, False]
