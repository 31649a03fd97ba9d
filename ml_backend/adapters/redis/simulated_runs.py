"""Simulated runs on RQ workers of several machines; data sets travel through Redis."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Worker, get_current_job
from rq.job import Job, JobStatus

from ml_backend.adapters.redis.client import address
from ml_backend.adapters.redis.jobs import SIMULATED
from ml_backend.domain.errors import SimulationError, StoreError
from ml_backend.domain.simulated_run import Run, Runner

log = logging.getLogger(__name__)

DAY = 86_400
KEPT_SECONDS = 600
"""How long data stays in Redis once its runs are done: another simulation may use it."""
POLL_SECONDS = 0.5
CHUNK = 64 * 2**20
"""Bytes per value in Redis, which takes 512 MB at most."""


def on_workers(url: str) -> Runner:
    """Runs on the workers of ``rush worker --only simulate`` at this Redis.

    What Redis loses is asked for again; Ctrl+C cancels what waits. Raises StoreError
    where Redis does not answer, SimulationError with a worker's traceback where a run fails.
    """

    def run_all(runs: Sequence[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
        redis = Redis.from_url(url, socket_connect_timeout=2)
        jobs: dict[str, Run] = {}
        stored: dict[Path, str] = {}
        try:
            queue = Queue(SIMULATED, connection=redis)
            stored.update((path, _store(redis, path)) for path in {run.data for run in runs})
            for run in runs:
                jobs[_enqueue(queue, run, stored[run.data])] = run
            if not Worker.count(queue=queue):
                log.warning("No worker listens yet: start rush worker --only simulate on any machine.")
            yield from _results(queue, jobs)
        except RedisError as error:
            raise StoreError(
                f"Redis at {address(url)} doesn't answer: {error}.", "Start it, or leave --redis out."
            ) from error
        finally:
            for job in Job.fetch_many(list(jobs), connection=redis):
                if job is not None:
                    job.delete()
            for digest in stored.values():
                redis.expire(_key(digest), KEPT_SECONDS)
            redis.close()

    return run_all


def _enqueue(queue: Queue, run: Run, digest: str) -> str:
    number = uuid.uuid4().hex
    job = queue.enqueue_call(
        "ml_backend.simulation.runner.simulate_stored",
        args=(digest, run.data.name, run.strategy, run.seed, asdict(run.options)),
        timeout=DAY,
        result_ttl=DAY,
        failure_ttl=DAY,
        description=f"{run.strategy} on {run.data.stem}, seed {run.seed}",
        job_id=number,
        meta={"lock": f"rush:running:simulate:{number}"},
    )
    return str(job.id)


def _results(queue: Queue, jobs: dict[str, Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
    waiting = dict(jobs)
    while waiting:
        numbers = list(waiting)
        for number, job in zip(numbers, Job.fetch_many(numbers, connection=queue.connection), strict=True):
            if job is None:
                run = waiting.pop(number)
                log.warning("%s, seed %d, is gone from Redis and asked for again.", run.strategy, run.seed)
                again = _enqueue(queue, run, _store(queue.connection, run.data))
                jobs[again] = waiting[again] = run
                continue
            status = job.get_status(refresh=False)
            if status is JobStatus.FINISHED:
                yield waiting.pop(job.id), job.return_value()
            elif status is JobStatus.FAILED:
                said = job.latest_result()
                raise SimulationError(
                    f"{job.description} failed on a worker:\n{said.exc_string if said else 'without a word'}",
                    "Mend it and call again: the runs that are done are kept.",
                )
        time.sleep(POLL_SECONDS)


def _store(redis: Any, path: Path) -> str:
    """Put a file into Redis, once; returns its digest."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()[:32]
    key = _key(digest)
    if not redis.exists(key):
        for start in range(0, len(data), CHUNK):
            redis.rpush(f"{key}:part", data[start : start + CHUNK])
        redis.rename(f"{key}:part", key)
    redis.expire(key, DAY)
    return digest


def _key(digest: str) -> str:
    return f"rush:simulate:{digest}"


def fetched(digest: str, name: str) -> Path:
    """The file of that digest, on this worker's disk; for use inside a job."""
    job = get_current_job()
    assert job is not None  # noqa: S101
    folder = Path(tempfile.gettempdir())
    for old in folder.glob("rush-simulate-*"):
        if old.stat().st_mtime < time.time() - DAY:
            shutil.rmtree(old, ignore_errors=True)
    path = folder / f"rush-simulate-{digest}" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{job.id}.part")
        part.write_bytes(b"".join(job.connection.lrange(_key(digest), 0, -1)))
        part.replace(path)
    return path
