"""The contract of ports.Jobs, with a real Redis and real worker processes."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

import ml_backend
from ml_backend.adapters.processes.servers import LocalRedis
from ml_backend.adapters.redis.jobs import FAST, QUEUES, SLOW, RqJobs, run_worker
from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.errors import StoreError
from ml_backend.domain.model import ProjectRef
from tests.waiting import until

REF, OTHER = ProjectRef("http://127.0.0.1:8080", 1), ProjectRef("http://127.0.0.1:8080", 2)
REPOSITORY = Path(ml_backend.__file__).parents[1]
MODULE = """
import os, time
from pathlib import Path

HERE = Path(__file__).parent


def note(text):
    with open(HERE / "log", "a") as file:
        file.write(f"{text}\\n")


def ingest(ref, n=0, seconds=0.0):
    note(f"begin ingest {ref.id} {n} {os.getpid()}")
    time.sleep(seconds)
    note(f"end ingest {ref.id} {n} {os.getpid()}")


def train(ref, n=0, seconds=0.0):
    note(f"begin train {ref.id} {n} {os.getpid()}")
    time.sleep(seconds)
    note(f"end train {ref.id} {n} {os.getpid()}")


def write_back(ref, url):
    note(f"begin write_back {ref.id}")
    time.sleep(0.1)
    from ml_backend.adapters.redis.jobs import RqJobs

    RqJobs(url, "somejobs").enqueue("write_back", ref, url=url)


def finetune(ref, force=False):
    note(f"begin finetune {ref.id}")
    os.kill(os.getpid(), 9)


def project(ref):
    note("failing")
    raise ValueError("the map is upside down")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str) -> Path:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    (tmp_path / "somejobs.py").write_text(MODULE)
    (tmp_path / "worker.log").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("somejobs", None)
    return tmp_path


@pytest.fixture
def jobs(folder: Path, redis_url: str) -> Iterator[RqJobs]:
    found = RqJobs(redis_url, "somejobs")
    yield found
    found.close()


@pytest.fixture
def worker(folder: Path, redis_url: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    children: list[subprocess.Popen[bytes]] = []

    def start(*queues: str, url: str = redis_url) -> subprocess.Popen[bytes]:
        code = (
            "import logging; from ml_backend.adapters.redis import jobs, recovery; "
            "logging.basicConfig(filename='worker.log'); "
            "jobs.LOCK_SECONDS, recovery.LOOK_SECONDS = 3.0, 0.5; "
            f"jobs.run_worker({url!r}, {queues!r})"
        )
        path = f"{folder}{os.pathsep}{REPOSITORY}"
        environment = {**os.environ, "PYTHONPATH": path}
        child = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=folder)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()


def lines(folder: Path) -> list[list[str]]:
    file = folder / "log"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def test_the_same_job_waits_once(jobs: RqJobs, folder: Path, redis_url: str) -> None:
    for _ in range(3):
        jobs.enqueue("train", REF)
        jobs.enqueue("train", OTHER)
        jobs.enqueue("train", REF, n=1)
        jobs.enqueue("ingest", REF)
    run_worker(redis_url, burst=True)
    begun = [line[1:4] for line in lines(folder) if line[0] == "begin"]
    assert begun == [["ingest", "1", "0"], ["train", "1", "0"], ["train", "2", "0"], ["train", "1", "1"]]
    jobs.enqueue("train", REF)
    run_worker(redis_url, burst=True)
    assert len([line for line in lines(folder) if line[0] == "begin"]) == 5


def test_finished_jobs_leave_nothing_behind(jobs: RqJobs, redis_url: str) -> None:
    jobs.enqueue("train", REF)
    run_worker(redis_url, burst=True)
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter("rq:job:*")) == []
        assert list(client.scan_iter("rush:running:*")) == []


def test_a_failed_job_is_logged_with_its_traceback_and_the_next_one_runs(
    jobs: RqJobs, folder: Path, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.enqueue("project", REF)
    jobs.enqueue("train", REF)
    with caplog.at_level(logging.WARNING):
        run_worker(redis_url, burst=True)
    assert "the map is upside down" in caplog.text
    assert "somejobs.py" in caplog.text
    assert [line[0] for line in lines(folder)] == ["failing", "begin", "end"]
    jobs.enqueue("project", REF)
    run_worker(redis_url, burst=True)
    assert lines(folder)[-1] == ["failing"]


def test_a_running_job_may_be_queued_once_more_and_never_runs_twice_at_once(
    jobs: RqJobs, folder: Path, worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    worker(*QUEUES)
    worker(*QUEUES)
    jobs.enqueue("train", REF, seconds=1.0)
    assert until(lambda: len(lines(folder)) == 1)
    for _ in range(20):
        jobs.enqueue("train", REF, seconds=1.0)
    # A worker that just looks at the waiting job hides it for a moment: one more may slip in, not twenty.
    assert until(lambda: len(lines(folder)) >= 4 and lines(folder)[-1][0] == "end")
    time.sleep(2.5)
    runs = [line[0] for line in lines(folder)]
    assert runs in (["begin", "end"] * 2, ["begin", "end"] * 3)


def test_ingest_does_not_wait_for_slow_jobs(
    jobs: RqJobs, folder: Path, worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    worker(FAST)
    worker(SLOW)
    jobs.enqueue("train", REF, seconds=60)
    assert until(lambda: len(lines(folder)) == 1)
    jobs.enqueue("ingest", REF)
    assert until(lambda: [line[:2] for line in lines(folder)][1:] == [["begin", "ingest"], ["end", "ingest"]])


def test_a_job_that_asks_for_itself_again_and_again_keeps_no_other_from_its_turn(
    jobs: RqJobs, folder: Path, worker: Callable[..., subprocess.Popen[bytes]], redis_url: str
) -> None:
    worker(*QUEUES)
    jobs.enqueue("write_back", REF, url=redis_url)
    assert until(lambda: len(lines(folder)) >= 2)
    jobs.enqueue("train", REF)
    assert until(lambda: ["end", "train"] in [line[:2] for line in lines(folder)])


def test_jobs_share_one_warm_process(
    jobs: RqJobs, folder: Path, worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    child = worker(*QUEUES)
    for n in range(3):
        jobs.enqueue("train", REF, n=n)
    assert until(lambda: len(lines(folder)) == 6)
    assert {line[4] for line in lines(folder)} == {str(child.pid)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_current_job_and_stops(
    jobs: RqJobs, folder: Path, worker: Callable[..., subprocess.Popen[bytes]], number: signal.Signals
) -> None:
    child = worker(*QUEUES)
    jobs.enqueue("train", REF, seconds=1.0)
    jobs.enqueue("train", REF, n=2)
    assert until(lambda: len(lines(folder)) == 1)
    child.send_signal(number)
    assert child.wait(20) == 0
    assert [line[:4] for line in lines(folder)] == [["begin", "train", "1", "0"], ["end", "train", "1", "0"]]


def test_a_signal_stops_an_idle_worker(
    jobs: RqJobs, folder: Path, worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    child = worker(*QUEUES)
    jobs.enqueue("train", REF)
    assert until(lambda: len(lines(folder)) == 2)
    time.sleep(0.3)
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 0


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[LocalRedis]:
    """A server that a test may stop."""
    place = tmp_path / "redis"
    place.mkdir()
    server = LocalRedis(place)
    server.start()
    yield server
    server.stop()


def test_a_worker_waits_for_redis_to_come_back(
    folder: Path, worker: Callable[..., subprocess.Popen[bytes]], own_redis: LocalRedis
) -> None:
    child = worker(*QUEUES, url=own_redis.url)
    jobs = RqJobs(own_redis.url, "somejobs")
    jobs.enqueue("train", REF, n=1)
    assert until(lambda: len(lines(folder)) == 2)
    own_redis.stop()
    time.sleep(0.5)
    own_redis.start()
    jobs.enqueue("train", REF, n=2)
    assert until(lambda: len(lines(folder)) == 4)
    assert child.poll() is None
    jobs.close()


@pytest.mark.parametrize("pause", [0.0, 0.2, 0.7, 1.5, 3.0])
def test_a_worker_that_waits_for_redis_stops_when_told(
    folder: Path, worker: Callable[..., subprocess.Popen[bytes]], own_redis: LocalRedis, pause: float
) -> None:
    child = worker(*QUEUES, url=own_redis.url)
    jobs = RqJobs(own_redis.url, "somejobs")
    jobs.enqueue("train", REF, n=1)
    jobs.close()
    assert until(lambda: len(lines(folder)) == 2)
    own_redis.stop()
    time.sleep(pause)
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 0


def test_a_job_that_goes_on_killing_its_worker_is_given_up(
    jobs: RqJobs, folder: Path, worker: Callable[..., subprocess.Popen[bytes]], redis_url: str
) -> None:
    jobs.enqueue("finetune", REF)
    jobs.enqueue("train", REF)
    begun = [["begin", "finetune", "1"]]
    children = [worker(SLOW)]

    def over() -> bool:
        if children[-1].poll() is not None:
            children.append(worker(SLOW))
        return "given up" in (folder / "worker.log").read_text()

    assert until(over, 90)
    said = (folder / "worker.log").read_text()
    assert "finetune of project 1 at http://127.0.0.1:8080: given up, it killed 3 workers" in said
    assert until(lambda: ["end", "train"] in [line[:2] for line in lines(folder)]), "others have their turn"
    jobs.enqueue("finetune", REF)  # nobody has changed anything
    jobs.enqueue("train", REF, n=2)
    assert until(lambda: lines(folder)[-1][:4] == ["end", "train", "1", "2"])
    assert [line for line in lines(folder) if line[1] == "finetune"] == 3 * begun
    with closing(RedisState(redis_url)) as state:
        assert state.given_up(REF) == {"finetune": 3}
        assert state.given_up(OTHER) == {}
    jobs.enqueue("finetune", REF, force=True)  # a person asks
    assert until(lambda: [line for line in lines(folder) if line[1] == "finetune"] == 4 * begun)


def test_without_redis_the_next_step_is_named() -> None:
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1 .*RUSH_REDIS_URL"):
        RqJobs("redis://127.0.0.1:1/0").enqueue("train", REF)
