"""What is in Redis although nobody needs it any more."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import cast

from rq import Queue
from rq.job import Job
from rq.utils import as_text

from ml_backend.adapters.redis.client import Connections
from ml_backend.adapters.redis.jobs import QUEUES, SIMULATED
from ml_backend.domain.model import ProjectRef

OLD_KEYS = "rush:keys"
"""Content keys by address, of all projects together, as versions up to 0.1 kept them."""
AGE = timedelta(days=1)


def prune(url: str) -> list[str]:
    """Delete jobs of a day ago that no queue and no registry knows; returns what was deleted."""
    with closing(Connections(url, text=False)) as connections, connections.use() as redis:
        gone = [OLD_KEYS] if redis.delete(OLD_KEYS) else []
        queues = [Queue(name, connection=redis) for name in (*QUEUES, SIMULATED)]
        known = {number for queue in queues for number in _numbers(queue)}
        for key in redis.scan_iter("rq:job:*", count=1000):
            number = as_text(key).removeprefix("rq:job:")
            if ":" not in number and number not in known and _old(redis.hget(key, "created_at")):
                redis.delete(key)
                gone.append(f"job {number}")
    return gone


def forget(url: str, project: ProjectRef) -> None:
    """Delete everything of a project: its state, and the jobs that wait for it."""
    with closing(Connections(url, text=False)) as connections, connections.use() as redis:
        for name in QUEUES:
            queue = Queue(name, connection=redis)
            for job in Job.fetch_many(queue.job_ids, connection=redis):
                if job is not None and job.meta.get("project") == project.slug:
                    job.delete()
        name = re.sub(r"([*?\[\]\\])", r"\\\1", project.slug)
        for key in list(redis.scan_iter(f"rush:{name}:*", count=1000)):
            redis.unlink(key)


def _numbers(queue: Queue) -> set[str]:
    registries = (
        queue.started_job_registry,
        queue.failed_job_registry,
        queue.deferred_job_registry,
        queue.scheduled_job_registry,
        queue.finished_job_registry,
        queue.canceled_job_registry,
    )
    return {*queue.job_ids, *(number for each in registries for number in each.get_job_ids(cleanup=False))}


def _old(created: object) -> bool:
    try:
        return datetime.fromisoformat(as_text(cast(bytes, created))) < datetime.now(UTC) - AGE
    except (ValueError, TypeError, AttributeError):
        return False
