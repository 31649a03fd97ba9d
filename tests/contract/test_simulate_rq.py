"""Simulated runs on real RQ workers, one of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from sklearn.datasets import load_digits

from ml_backend.adapters.redis.simulated_runs import on_workers
from ml_backend.domain.errors import SimulationError
from ml_backend.domain.simulated_run import Options
from ml_backend.simulation.runner import simulate, simulate_run

pytestmark = pytest.mark.slow


@pytest.fixture
def workers(redis_url: str, tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    environment = {**os.environ, "RUSH_REDIS_URL": redis_url, "RUSH_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "ml_backend.cli", "worker", "--only", "simulate"]
    started = [subprocess.Popen(command, env=environment, cwd=Path.cwd()) for _ in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_runs_on_workers_are_those_of_this_machine_and_survive_a_killed_one(
    workers: list[subprocess.Popen[bytes]], redis_url: str, tmp_path: Path
) -> None:
    digits = load_digits()
    path = tmp_path / "digits.npz"
    np.savez(path, features=digits.data[:300].astype(np.float16), labels=digits.target[:300])
    options = Options(labels=60)
    killed: list[int] = []

    def told(stage: str, done: int, total: int) -> None:
        if done == 1 and not killed:  # the others are under way or wait
            with redis.Redis.from_url(redis_url) as client:
                waiting = client.lrange("rq:queue:rush-simulate", 0, -1)
                client.delete(*(f"rq:job:{job.decode()}" for job in waiting[:1]))  # as an eviction would
            time.sleep(0.5)
            os.kill(workers[0].pid, signal.SIGKILL)
            killed.append(done)

    found = simulate([path], ["margin", "rush"], 2, options, tmp_path / "out", on_workers(redis_url), told)
    assert killed == [1]
    assert len(found) == 6
    again = simulate_run(path, "margin", 1, options)
    mine = next(run for run in found if (run["strategy"], run["seed"]) == ("margin", 1))
    assert mine["steps"][-1]["labels"] == again["steps"][-1]["labels"] == 60
    with redis.Redis.from_url(redis_url) as client:
        assert not client.keys("rq:job:*")


def test_a_run_that_fails_on_a_worker_is_named(
    workers: list[subprocess.Popen[bytes]], redis_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "three.npz"
    np.savez(path, features=np.eye(3, dtype=np.float16), labels=[0, 1])
    with pytest.raises(SimulationError, match=r"random on three, seed 0 failed on a worker:(?s:.*)Traceback"):
        simulate([path], [], 1, Options(), tmp_path / "out", on_workers(redis_url), lambda *_: None)
