"""Gives the jobs of workers that were killed to others, and gives up those that go on killing workers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.utils import as_text

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
DEATHS = 3
"""Workers that a job may kill."""
DEATHS_OF = {"ingest": 12}
"""More where each death tells which image it was, which the next run passes over."""
REST_SECONDS = 3600
"""How long no job of the kind is begun for the project once it was given up."""


class Deaths:
    """How many workers died of the jobs with one lock, lately; jobs that end in any other way clear it."""

    def __init__(self, redis: Redis, job: Job) -> None:
        self._redis = redis
        self.lock = str(job.meta.get("lock", job.id))
        self.most = DEATHS_OF.get(job.func_name.rpartition(".")[2], DEATHS)

    @property
    def _key(self) -> str:
        return f"rush:deaths:{self.lock}"

    def one_more(self) -> int:
        """Note a death; how many there are now."""
        with self._redis.pipeline() as pipe:
            pipe.incr(self._key)
            pipe.expire(self._key, REST_SECONDS)
            return int(pipe.execute()[0])

    def number(self) -> int:
        """How many there are."""
        return int(cast(bytes, self._redis.get(self._key)) or 0)

    def clear(self) -> None:
        """It does not kill workers any more."""
        self._redis.delete(self._key)


def give_up(redis: Redis, job: Job, deaths: int) -> None:
    """Let the job fail, say so, and note it for ``rush doctor``."""
    name = job.func_name.rpartition(".")[2]
    log.error(
        "%s: given up, it killed %d workers; not begun again for an hour. Watch a worker's memory and log, "
        "then run the command that asks for it.",
        job.description,
        deaths,
    )
    job.set_status(JobStatus.FAILED)
    FailedJobRegistry(job.origin, connection=redis).add(
        job, ttl=job.failure_ttl or -1, exc_string=f"It killed {deaths} workers."
    )
    if project := job.meta.get("project"):
        noted = f"rush:{project}:given_up"
        redis.hset(noted, name, str(deaths))
        redis.expire(noted, REST_SECONDS)


class Watch:
    """Looks for jobs that are started while nobody holds their lock (``meta["lock"]``).

    One that is so at two looks in a row was its worker's last: it goes back to its queue, by whichever of
    all workers takes it out of the registry; unless it has killed too many.
    """

    def __init__(self, redis: Redis, queues: Sequence[str]) -> None:
        self._queues = [Queue(name, connection=redis) for name in queues]
        self._redis = redis
        self._alone: set[str] = set()

    def look(self) -> None:
        """Look once; RedisError where Redis does not answer."""
        found = dict(self._abandoned())
        for entry in found.keys() & self._alone:
            registry, job = found[entry]
            if self._redis.zrem(registry.key, entry):
                self._put_back(registry, job)
        self._alone = set(found)

    def _put_back(self, registry: StartedJobRegistry, job: Job) -> None:
        deaths = Deaths(self._redis, job)
        number = deaths.one_more()
        if number >= deaths.most:
            give_up(self._redis, job, number)
            return
        log.warning("%s: its worker is gone; it is queued again.", job.description)
        registry.get_queue().push_job_id(job.id)

    def _abandoned(self) -> Iterator[tuple[str, tuple[StartedJobRegistry, Job]]]:
        for queue in self._queues:
            registry = StartedJobRegistry(queue=queue)
            entries = [as_text(entry) for entry in cast(list[bytes], self._redis.zrange(registry.key, 0, -1))]
            jobs = Job.fetch_many([registry.parse_job_id(entry) for entry in entries], connection=self._redis)
            for entry, job in zip(entries, jobs, strict=True):
                lock = job.meta.get("lock") if job is not None else None
                started = job is not None and job.get_status(refresh=False) == JobStatus.STARTED
                if job is not None and lock and started and not self._redis.exists(lock):
                    yield entry, (registry, job)


@contextmanager
def watching(url: str, queues: Sequence[str]) -> Iterator[None]:
    """Look every few seconds, in a thread of its own, as long as the block runs."""
    done = threading.Event()

    def keep() -> None:
        with Redis.from_url(url, socket_connect_timeout=2, socket_timeout=10) as redis:
            watch = Watch(redis, queues)
            while not done.wait(LOOK_SECONDS):
                try:
                    watch.look()
                except RedisError as error:
                    log.debug("Not looked for abandoned jobs: %s", error)

    thread = threading.Thread(target=keep, name="take over", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
