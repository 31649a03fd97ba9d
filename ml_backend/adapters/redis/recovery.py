"""Gives the jobs of workers that were killed to others."""

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
from rq.registry import StartedJobRegistry
from rq.utils import as_text

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0


class Watch:
    """Looks for jobs that are started while nobody holds their lock (``meta["lock"]``).

    One that is so at two looks in a row was its worker's last: it goes back to its queue, by whichever of
    all workers takes it out of the registry.
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
                log.warning("%s: its worker is gone; it is queued again.", job.description)
                registry.get_queue().push_job_id(job.id)
        self._alone = set(found)

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
