"""``ports.Jobs`` on RQ: two queues, and a worker that stays warm from job to job."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import LockError, RedisError
from rq import Queue, SimpleWorker, Worker
from rq.exceptions import StopRequested
from rq.job import Job
from rq.worker import DequeueStrategy

from ml_backend.adapters.redis.client import Connections, address
from ml_backend.adapters.redis.recovery import Deaths, give_up, watching
from ml_backend.domain.model import ProjectRef

log = logging.getLogger(__name__)

FAST, SLOW = "rush-fast", "rush-slow"
QUEUES = (FAST, SLOW)
SIMULATED = "rush-simulate"
"""For ``rush simulate --redis``: served only where a worker is told so."""
HOUR = 3600
FAST_JOBS = {"ingest", "sync", "write_back"}
"""Jobs that wait for the network or give way soon; the others keep a CPU busy."""
TIMEOUTS = {"ingest": 6 * HOUR, "write_back": 24 * HOUR, "finetune": 48 * HOUR}
"""Seconds after which a job counts as hung; these resume where they were."""
TIMEOUT = HOUR
FAILURE_TTL = 7 * 24 * HOUR
SHARDED = {"ingest"}
"""Jobs of one project that may run side by side, as long as they are given different things to do."""
LOCK_SECONDS = 30.0
BUSY_SECONDS = 0.5
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 15.0


class RqJobs:
    """``ports.Jobs``: puts ``<module>.<job>(project, **arguments)`` on its queue.

    Raises StoreError with the next step where Redis doesn't answer.
    """

    def __init__(self, url: str, module: str = "ml_backend.jobs") -> None:
        self._connections, self._module = Connections(url, text=False), module

    def enqueue(self, job: str, project: ProjectRef, **arguments: Any) -> None:
        """Run a job soon, unless the same one still waits; one that already runs is queued once more."""
        digest = _digest(job, project, arguments)
        waiting, lock = f"rush:waiting:{digest}", f"rush:running:{project.slug}:{job}"

        def add(queue: Queue, pipe: Pipeline) -> None:
            number: Any = pipe.get(waiting)
            if number is not None and pipe.lpos(queue.key, number) is not None:
                pipe.multi()
                return
            pipe.multi()
            fresh = queue.enqueue_call(
                f"{self._module}.{job}",
                args=(project,),
                kwargs=arguments,
                timeout=TIMEOUTS.get(job, TIMEOUT),
                result_ttl=0,
                failure_ttl=FAILURE_TTL,
                job_id=f"{_name(job, project)}{uuid.uuid4().hex}",
                description=f"{job} of project {project.id} at {project.origin}",
                meta={"lock": f"{lock}:{digest}" if job in SHARDED else lock, "project": project.slug},
                pipeline=pipe,
            )
            pipe.set(waiting, fresh.id, ex=FAILURE_TTL)

        with self._connections.use(
            "Start it or set RUSH_REDIS_URL; `rush sync` catches up on what was not queued."
        ) as redis:
            queue = Queue(FAST if job in FAST_JOBS else SLOW, connection=redis)
            redis.transaction(partial(add, queue), waiting)

    def waits(self, job: str, project: ProjectRef) -> bool:
        """Whether such a job of the project has yet to begin."""
        with self._connections.use() as redis:
            queue = Queue(FAST if job in FAST_JOBS else SLOW, connection=redis)
            return any(number.startswith(_name(job, project)) for number in queue.job_ids)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._connections.close()


class WarmWorker(SimpleWorker):
    """Runs jobs in its own process, so that what they load stays; never two of the same job and project.

    A job whose like runs in another worker goes to the back of its queue.
    """

    stopping = False

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run the job while holding its lock."""
        with held(self.connection, job.get_meta(refresh=False).get("lock", job.id)) as free:
            if free:
                self._execute(job, queue)
                return
        queue.push_job_id(job.id)
        time.sleep(BUSY_SECONDS)

    def _execute(self, job: Job, queue: Queue) -> None:
        deaths = Deaths(self.connection, job)
        if (number := deaths.number()) >= deaths.most and not job.kwargs.get("force"):
            give_up(self.connection, job, number)
            return
        began = time.monotonic()
        log.info("%s begins.", job.description)
        super().execute_job(job, queue)
        log.info("%s took %.1f s.", job.description, time.monotonic() - began)
        deaths.clear()

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Finish the current job, then stop; a second signal stops at once."""
        self.stopping = True
        log.info("Stopping after the current job; press Ctrl+C again to stop at once.")
        with suppress(RedisError):  # noted there for others to see; the stop stands without it
            super().request_stop(signum, frame)


@contextmanager
def held(redis: Redis, name: str) -> Iterator[bool]:
    """Hold a lock over machines for as long as this process lives; False where another one holds it."""
    lock = redis.lock(name, timeout=LOCK_SECONDS, thread_local=False)
    if not lock.acquire(blocking=False):
        yield False
        return
    done = threading.Event()

    def keep() -> None:
        while not done.wait(LOCK_SECONDS / 3):
            try:
                try:
                    lock.reacquire()
                except LockError:  # it ran out while this process or the machine stood still
                    if not lock.acquire(blocking=False):
                        raise
            except RedisError as error:
                log.warning("Lock %s not renewed: %s", name, error)

    keeper = threading.Thread(target=keep, name="lock", daemon=True)
    keeper.start()
    try:
        yield True
    finally:
        done.set()
        keeper.join()
        try:
            lock.release()
        except RedisError as error:
            log.warning("Lock %s not released: %s", name, error)


def run_worker(url: str, queues: Sequence[str] = QUEUES, *, burst: bool = False) -> None:
    """Work off the queues in turn until Ctrl+C or SIGTERM, which finishes the current job.

    In turn, since coordinates are written in many short jobs that each put the next one on the queue. Runs in
    the main thread. A Redis that goes away is waited for. One worker per queue keeps new images from waiting
    for a fine-tuning run. ``burst`` returns once the queues are empty. The job of a worker that was
    killed is queued again within ``LOCK_SECONDS`` and a few more.
    """
    with suppress(StopRequested), watching(url, queues):
        _work(url, queues, burst)


def _work(url: str, queues: Sequence[str], burst: bool) -> None:
    _stop_on_signals()
    wait = RETRY_SECONDS
    while True:
        redis = Redis.from_url(url, socket_connect_timeout=2)
        worker: WarmWorker | None = None
        try:
            worker = WarmWorker(list(queues), connection=redis, log_job_description=True)
            worker.work(burst=burst, logging_level="WARNING", dequeue_strategy=DequeueStrategy.ROUND_ROBIN)
        except RedisError as error:
            log.warning("Redis at %s doesn't answer: %s Again in %.0f s.", address(url), error, wait)
        finally:
            _stop_on_signals()
            redis.close()
        if burst or (worker is not None and worker.stopping):
            return
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_RETRY_SECONDS) if worker is None else RETRY_SECONDS


def _stop_on_signals() -> None:
    """Outside of ``Worker.work``, whose own handlers ask a Redis that may be gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise StopRequested


def missing_workers(url: str) -> str:
    """Say which queues no worker listens to; nothing where all is well."""
    with Redis.from_url(url, socket_connect_timeout=2, socket_timeout=10) as redis:
        served = {name for worker in Worker.all(connection=redis) for name in worker.queue_names()}
    lacking = [name for name in QUEUES if name not in served]
    return f"no worker serves {', '.join(lacking)}" if lacking else ""


def _name(job: str, project: ProjectRef) -> str:
    """What the numbers of such jobs begin with, in letters that RQ takes."""
    return f"{job}-{_digest(job, project, None)}-"


def _digest(job: str, project: ProjectRef, arguments: Any) -> str:
    text = json.dumps([job, project.origin, project.id, arguments], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
