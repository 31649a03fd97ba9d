"""One import, several workers, one of them killed in the middle: real RQ, real embedding, real files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import redis

import ml_backend
from ml_backend.adapters.files.digits import write_digits
from ml_backend.adapters.files.features import FileFeatures, feature_set
from ml_backend.adapters.redis.jobs import RqJobs
from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.model import ContentKey, ProjectRef, TaskId
from tests.serving import serving
from tests.waiting import until

pytestmark = pytest.mark.slow

REPOSITORY = Path(ml_backend.__file__).parents[1]
IMAGES = 400
WORKER = """
import logging, sys
from ml_backend import jobs
from ml_backend.adapters.redis import jobs as jobs_rq
from ml_backend.adapters.redis import recovery

logging.basicConfig(level=logging.INFO)
jobs.SHARD, jobs_rq.LOCK_SECONDS, recovery.LOOK_SECONDS = 40, 3.0, 0.5
jobs_rq.run_worker(sys.argv[1], [jobs_rq.FAST])
"""


@pytest.fixture
def images(tmp_path: Path) -> Iterator[list[str]]:
    """Addresses of digits behind a slow line."""
    write_digits(tmp_path / "digits")
    files = sorted((tmp_path / "digits").rglob("*.png"))[:IMAGES]
    assert len(files) == IMAGES

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(0.1)
            name = self.path[1:-4]
            file = files[int(name)] if name.isdigit() else tmp_path / "digits" / name
            data = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *given: object) -> None: ...

    with serving(Slow) as address:
        yield [f"{address}/{number}.png" for number in range(len(files))]


@pytest.fixture
def start(
    redis_url: str, tmp_path: Path, images: list[str]
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    children: list[subprocess.Popen[bytes]] = []
    origin = images[0].rpartition("/")[0]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "RUSH_REDIS_URL": redis_url,
        "RUSH_DATA_DIR": str(tmp_path / "rush"),
        "RUSH_IMAGE_SIZE": "64",
        "LABEL_STUDIO_URL": origin,
        "LABEL_STUDIO_API_KEY": "none",
    }

    def started(log: str, before: str = "") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", before + WORKER, redis_url]
        with open(tmp_path / log, "wb") as out:
            children.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
        return children[-1]

    yield started
    for child in children:
        child.kill()
        child.wait()


DEADLY = b"deadly"
KILLED = """
import os
import numpy as np
from ml_backend.bootstrap import Container


class Embedding:
    def embed(self, images):
        for name, data in images:
            if data.startswith(b"deadly"):
                os.kill(os.getpid(), 9)
            yield name, np.full(1280, data[20], np.float32)

Container.embedder = lambda self, feature_set: Embedding()
"""


def test_an_image_that_kills_workers_is_named_and_costs_no_other(
    start: Callable[..., subprocess.Popen[bytes]],
    state: RedisState,
    redis_url: str,
    images: list[str],
    tmp_path: Path,
) -> None:
    ref, few = ProjectRef(images[0].rpartition("/")[0], 1), dict(enumerate(images[:40], 1))
    (tmp_path / "digits" / "deadly").write_bytes(DEADLY)
    few[17] = images[0].replace("/0.png", "/deadly.png")
    state.set_tasks(ref, {TaskId(n): ContentKey("") for n in few})
    jobs = RqJobs(redis_url)
    jobs.enqueue("ingest", ref, images={str(n): address for n, address in few.items()})
    workers = [start("one.log", KILLED)]

    def over() -> bool:
        if workers[-1].poll() is not None:
            workers.append(start(f"{len(workers)}.log", KILLED))
        return sum(bool(key) for key in state.tasks(ref).values()) == 39 and bool(state.unread(ref))

    assert until(over, 90)
    assert len(workers) == 3, "it killed two"
    (it,) = state.unread(ref).values()
    assert (it.task, it.why) == (17, "Reading it killed a worker 2 times.")
    assert "task 17: Reading it killed a worker 2 times." in (tmp_path / "2.log").read_text()
    assert until(lambda: not jobs.waits("ingest", ref))
    jobs.close()


def test_an_import_is_shared_out_and_outlives_a_killed_worker(
    start: Callable[[str], subprocess.Popen[bytes]],
    state: RedisState,
    redis_url: str,
    images: list[str],
    tmp_path: Path,
) -> None:
    ref = ProjectRef(images[0].rpartition("/")[0], 1)
    workers = {log: start(log) for log in ("one.log", "two.log")}
    state.set_tasks(ref, {TaskId(n + 1): ContentKey("") for n in range(IMAGES)})
    jobs = RqJobs(redis_url)
    jobs.enqueue("ingest", ref, images={str(n + 1): address for n, address in enumerate(images)})

    def done() -> int:
        return sum(bool(key) for key in state.tasks(ref).values())

    assert until(lambda: done() >= 60, 90)
    logs = {name: (tmp_path / name).read_text() for name in workers}
    assert all("ingest of project 1" in text for text in logs.values()), "both are at it"
    workers["one.log"].send_signal(signal.SIGKILL)
    left = IMAGES - done()
    assert left > 0
    assert until(lambda: done() == IMAGES, 90), (tmp_path / "two.log").read_text()
    assert "its worker is gone; it is queued again" in (tmp_path / "two.log").read_text()
    features = FileFeatures(tmp_path / "rush" / "features", feature_set("efficientnet-lite0", 64), 1280)
    assert not features.missing(state.tasks(ref).values())
    assert len(features) == len(set(state.tasks(ref).values())), "no image was stored twice"
    assert not jobs.waits("ingest", ref)
    assert jobs.waits("lay_out_map", ref), "a map of all of them is asked for"
    jobs.close()
