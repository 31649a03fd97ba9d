"""``ports.State`` in Redis: a few hashes per project under ``rush:<slug>:…``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple
from typing import Any

from redis.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ml_backend.adapters.redis.client import Connections
from ml_backend.domain.events import Event, from_text, to_text
from ml_backend.domain.model import Annotation, AnnotationId, ContentKey, PredictionId, ProjectRef, TaskId
from ml_backend.domain.unread import Unread
from ml_backend.ports import StoreMemory

PROJECTS = "rush:projects"
EVENTS = "rush:events"
BATCH = 10_000
SUBMIT_SECONDS = 24 * 3600
READING_SECONDS = 3 * 24 * 3600
RECONNECT_SECONDS = 0.2
LARGEST_SCORE = 2**52
"""Scores are floats in Label Studio and integers here; up to this size both are exact."""

# A score counter must not hand out places that are taken (by an import, or from before Redis was emptied).
# KEYS: front, back; ARGV: the lowest and the highest score seen.
_TAKE_IN = """
local front = tonumber(redis.call('GET', KEYS[1]) or '0')
local back = tonumber(redis.call('GET', KEYS[2]) or '0')
if tonumber(ARGV[1]) < front then redis.call('SET', KEYS[1], ARGV[1]) end
if tonumber(ARGV[2]) > back then redis.call('SET', KEYS[2], ARGV[2]) end
"""


class RedisState:
    """``ports.State`` on a Redis server, for many threads and processes.

    Every call raises StoreError with the next step where Redis doesn't answer.
    """

    def __init__(self, url: str) -> None:
        self._connections = Connections(url)
        self._pubsub: PubSub | None = None

    # ---- projects and their options

    def projects(self) -> list[ProjectRef]:
        """Every project that was ever written to, ordered by origin and id."""
        with self._redis() as redis:
            known = [ProjectRef(*json.loads(entry)) for entry in redis.smembers(PROJECTS)]
        return sorted(known, key=lambda ref: (ref.origin, ref.id))

    def forget(self, project: ProjectRef) -> None:
        """It is no project any more; ``leftovers.forget`` deletes what was noted of it."""
        with self._redis() as redis:
            redis.srem(PROJECTS, _entry(project))

    def first_for(self, what: str, seconds: float) -> bool:
        """Whether nobody has asked this, over all processes, for so many seconds."""
        with self._redis() as redis:
            return bool(redis.set(f"rush:last:{what}", "1", nx=True, ex=int(seconds)))

    def memory(self) -> StoreMemory:
        """Memory in use, its limit and the eviction policy, which a managed Redis may not tell."""
        with self._redis() as redis:
            try:
                found = redis.info("memory")
            except ResponseError:  # INFO is forbidden or renamed
                return StoreMemory("")
        policy = str(found.get("maxmemory_policy", ""))
        return StoreMemory(policy, int(found.get("used_memory", 0)), int(found.get("maxmemory", 0)))

    def options(self, project: ProjectRef) -> dict[str, str]:
        """Per-project choices and facts."""
        with self._redis() as redis:
            return dict(redis.hgetall(_name(project, "options")))

    def set_options(self, project: ProjectRef, **options: str) -> None:
        """Set these options, leaving the others as they are; registers the project."""
        self._set(project, "options", options)

    def settle_option(self, project: ProjectRef, name: str, value: str) -> None:
        """Set an option unless it is set: of several processes the first decides; registers the project."""
        with self._redis() as redis, redis.pipeline() as pipe:
            pipe.sadd(PROJECTS, _entry(project))
            pipe.hsetnx(_name(project, "options"), name, value)
            pipe.execute()

    # ---- tasks

    def tasks(self, project: ProjectRef, only: Sequence[TaskId] | None = None) -> dict[TaskId, ContentKey]:
        """Every known task, or those of ``only``; the key is empty where its image is not embedded."""
        name = _name(project, "tasks")
        with self._redis() as redis:
            if only is None:
                found = redis.hgetall(name).items()
            else:
                some = [(task, redis.hmget(name, list(map(str, task)))) for task in _batches(only)]
                found = [pair for tasks, keys in some for pair in zip(tasks, keys, strict=True)]
        return {TaskId(int(task)): ContentKey(key) for task, key in found if key is not None}

    def set_tasks(self, project: ProjectRef, tasks: Mapping[TaskId, ContentKey]) -> None:
        """Note tasks; an empty key leaves a key that is known already, so late events lose nothing."""
        self._set(project, "tasks", {task: key for task, key in tasks.items() if key})
        bare = [task for task, key in tasks.items() if not key]
        with self._redis() as redis:
            for some in _batches(bare):
                with redis.pipeline(transaction=False) as pipe:
                    pipe.sadd(PROJECTS, _entry(project))
                    for task in some:
                        pipe.hsetnx(_name(project, "tasks"), str(task), "")
                    pipe.execute()

    def delete_tasks(self, project: ProjectRef, tasks: Iterable[TaskId]) -> None:
        """Forget tasks with their annotations, queue rows and written coordinates."""
        with self._redis() as redis:
            for some in _batches(tasks):
                with redis.pipeline(transaction=False) as pipe:
                    for task in some:
                        pipe.zrange(_name(project, "annotated"), int(task), int(task), byscore=True)
                    annotations = [number for found in pipe.execute() for number in found]
                with redis.pipeline() as pipe:
                    for name in ("tasks", "window", "written", "sources"):
                        pipe.hdel(_name(project, name), *map(str, some))
                    if annotations:
                        pipe.hdel(_name(project, "annotations"), *annotations)
                        pipe.zrem(_name(project, "annotated"), *annotations)
                    pipe.execute()

    # ---- annotations

    def annotations(self, project: ProjectRef) -> list[Annotation]:
        """Every annotation, ordered by id."""
        with self._redis() as redis:
            found = redis.hvals(_name(project, "annotations"))
        return sorted(map(_annotation, found), key=lambda annotation: annotation.id)

    def annotation(self, project: ProjectRef, annotation: AnnotationId) -> Annotation | None:
        """One annotation, or None."""
        with self._redis() as redis:
            found = redis.hget(_name(project, "annotations"), str(annotation))
        return None if found is None else _annotation(found)

    def set_annotations(self, project: ProjectRef, annotations: Iterable[Annotation]) -> None:
        """Add or replace annotations."""
        with self._redis() as redis:
            for some in _batches(annotations):
                with redis.pipeline() as pipe:
                    pipe.sadd(PROJECTS, _entry(project))
                    rows = {str(a.id): _text(a) for a in some}
                    pipe.hset(_name(project, "annotations"), mapping=rows)
                    pipe.zadd(_name(project, "annotated"), {str(a.id): int(a.task) for a in some})
                    pipe.execute()

    def delete_annotations(self, project: ProjectRef, annotations: Iterable[AnnotationId]) -> None:
        """Forget annotations; unknown ones are fine."""
        with self._redis() as redis:
            for some in _batches(annotations):
                with redis.pipeline() as pipe:
                    pipe.hdel(_name(project, "annotations"), *map(str, some))
                    pipe.zrem(_name(project, "annotated"), *map(str, some))
                    pipe.execute()

    # ---- the queue window

    def window(self, project: ProjectRef) -> dict[TaskId, tuple[PredictionId, float]]:
        """Tasks that hold a prediction: its id (0 where not known yet) and its score."""
        with self._redis() as redis:
            found = redis.hgetall(_name(project, "window"))
        rows = ((int(task), row.split()) for task, row in found.items())
        return {TaskId(task): (PredictionId(int(number)), float(score)) for task, (number, score) in rows}

    def set_window(self, project: ProjectRef, rows: Mapping[TaskId, tuple[PredictionId, float]]) -> None:
        """Note rows; scores that are handed out later lie outside of all that were noted."""
        if not rows:
            return
        scores = [max(-LARGEST_SCORE, min(LARGEST_SCORE, score)) for _, score in rows.values()]
        ends = [math.floor(min(scores)), math.ceil(max(scores))]
        with self._redis() as redis:
            redis.eval(_TAKE_IN, 2, _name(project, "front"), _name(project, "back"), *ends)
        self._set(project, "window", {task: f"{number} {score!r}" for task, (number, score) in rows.items()})

    def drop_window(self, project: ProjectRef, tasks: Iterable[TaskId]) -> None:
        """Forget the rows of these tasks; tasks without one are fine."""
        with self._redis() as redis:
            for some in _batches(tasks):
                redis.hdel(_name(project, "window"), *map(str, some))

    def push_scores(self, project: ProjectRef, count: int) -> range:
        """``count`` fresh scores in front of everything: strictly decreasing, atomic over processes."""
        with self._redis() as redis:
            lowest = int(redis.decrby(_name(project, "front"), count))
        return range(lowest + count - 1, lowest - 1, -1)

    def append_scores(self, project: ProjectRef, count: int) -> range:
        """``count`` fresh scores behind everything: strictly increasing, atomic over processes."""
        with self._redis() as redis:
            highest = int(redis.incrby(_name(project, "back"), count))
        return range(highest - count + 1, highest + 1)

    # ---- people and coordinates

    def note_submit(self, project: ProjectRef) -> None:
        """Somebody submitted just now; timed by Redis, so the clocks of machines don't matter."""
        with self._redis() as redis:
            redis.set(_name(project, "submitted"), "1", ex=SUBMIT_SECONDS)

    def seconds_since_submit(self, project: ProjectRef) -> float:
        """Seconds since the last ``note_submit``; infinite where there was none for a day."""
        with self._redis() as redis:
            left = int(redis.pttl(_name(project, "submitted")))
        return math.inf if left < 0 else SUBMIT_SECONDS - left / 1000

    def written(self, project: ProjectRef) -> dict[TaskId, str]:
        """What was last written back to each task, in the words of the writer."""
        with self._redis() as redis:
            found = redis.hgetall(_name(project, "written"))
        return {TaskId(int(task)): text for task, text in found.items()}

    def set_written(self, project: ProjectRef, written: Mapping[TaskId, str]) -> None:
        """Note what was written back."""
        self._set(project, "written", written)

    # ---- images and their addresses

    def read_before(
        self, project: ProjectRef, tasks: Sequence[TaskId]
    ) -> dict[TaskId, tuple[ContentKey, str]]:
        """Of these tasks the ones that have a key: that, and its source or ""."""
        found: dict[TaskId, tuple[ContentKey, str]] = {}
        with self._redis() as redis:
            for some in _batches(tasks):
                keys = redis.hmget(_name(project, "tasks"), some)
                sources = redis.hmget(_name(project, "sources"), some)
                rows = zip(some, keys, sources, strict=True)
                found |= {task: (ContentKey(key), source or "") for task, key, source in rows if key}
        return found

    def sources(self, project: ProjectRef) -> dict[TaskId, str]:
        """A digest of the address that each task's key was read at, as far as it is known."""
        with self._redis() as redis:
            found = redis.hgetall(_name(project, "sources"))
        return {TaskId(int(task)): digest for task, digest in found.items()}

    def set_sources(self, project: ProjectRef, sources: Mapping[TaskId, str]) -> None:
        """Note where the keys of tasks were read."""
        self._set(project, "sources", sources)

    def unread(self, project: ProjectRef) -> dict[str, Unread]:
        """The images that can't be read, by the digest of their address."""
        with self._redis() as redis:
            found = redis.hgetall(_name(project, "unread"))
        return {digest: Unread(*json.loads(text)) for digest, text in found.items()}

    def set_unread(self, project: ProjectRef, unread: Mapping[str, Unread]) -> None:
        """Note images that can't be read."""
        texts = {digest: json.dumps(astuple(it)) for digest, it in unread.items()}
        self._set(project, "unread", texts)

    def drop_unread(self, project: ProjectRef, addresses: Iterable[str] | None = None) -> None:
        """Forget that these can't be read; without ``addresses`` (digests) none is left."""
        with self._redis() as redis:
            if addresses is None:
                redis.delete(_name(project, "unread"))
                return
            for some in _batches(addresses):
                redis.hdel(_name(project, "unread"), *some)

    def note_reading(self, project: ProjectRef, run: str, addresses: Iterable[str]) -> None:
        """A run is about to read these (digests); the note outlives a killed worker by a few days."""
        name = _name(project, f"reading:{run}")
        with self._redis() as redis, redis.pipeline() as pipe:
            pipe.sadd(name, *addresses)
            pipe.expire(name, READING_SECONDS)
            pipe.execute()

    def reading(self, project: ProjectRef, run: str) -> set[str]:
        """What a run has noted."""
        with self._redis() as redis:
            return set(redis.smembers(_name(project, f"reading:{run}")))

    def end_reading(self, project: ProjectRef, run: str) -> None:
        """The run has ended well, or its notes were looked at."""
        with self._redis() as redis:
            redis.delete(_name(project, f"reading:{run}"))

    def suspects(self, project: ProjectRef) -> dict[str, int]:
        """How many workers died while they read each of these addresses (digests)."""
        with self._redis() as redis:
            found = redis.hgetall(_name(project, "suspects"))
        return {digest: int(deaths) for digest, deaths in found.items()}

    def set_suspects(self, project: ProjectRef, deaths: Mapping[str, int]) -> None:
        """Note deaths; 0 clears an address."""
        self._set(project, "suspects", {digest: str(n) for digest, n in deaths.items() if n})
        cleared = [digest for digest, n in deaths.items() if not n]
        with self._redis() as redis:
            for some in _batches(cleared):
                redis.hdel(_name(project, "suspects"), *some)

    def given_up(self, project: ProjectRef) -> dict[str, int]:
        """The kinds of jobs that are not begun for a while, and how many workers each has killed."""
        with self._redis() as redis:
            found = redis.hgetall(_name(project, "given_up"))
        return {job: int(deaths) for job, deaths in found.items()}

    # ---- events

    def publish(self, project: ProjectRef, event: Event) -> None:
        """Tell every process that listens; nobody listening is fine."""
        with self._redis() as redis:
            redis.publish(EVENTS, json.dumps([project.origin, project.id, *to_text(event)]))

    def listen(self, timeout: float) -> Iterator[tuple[ProjectRef, Event]]:
        """Events as they come; ends after ``timeout`` seconds without one. For one listening thread.

        The subscription stays from call to call: what is published in between waits. A Redis that goes away
        is waited for; what is published meanwhile is lost.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = self._subscription().get_message(timeout=left)
            except (RedisConnectionError, RedisTimeoutError):
                self._unsubscribe()
                time.sleep(min(RECONNECT_SECONDS, max(left, 0)))
                continue
            if message is not None:
                origin, number, name, fields = json.loads(message["data"])
                if (event := from_text(name, fields)) is not None:  # else a newer version's
                    yield ProjectRef(origin, number), event
                deadline = time.monotonic() + timeout

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._unsubscribe()
        self._connections.close()

    # ---- internals

    def _subscription(self) -> PubSub:
        if self._pubsub is None:
            self._pubsub = self._connections.subscriber()
            self._pubsub.subscribe(EVENTS)
        return self._pubsub

    def _unsubscribe(self) -> None:
        if self._pubsub is not None:
            self._pubsub.close()
            self._pubsub = None

    def _redis(self) -> AbstractContextManager[Any]:
        return self._connections.use(
            "Start it or set RUSH_REDIS_URL; nothing is lost: `rush sync` rebuilds what it held."
        )

    def _set(self, project: ProjectRef, name: str, fields: Mapping[Any, str]) -> None:
        """Write fields of one of the project's hashes."""
        with self._redis() as redis:
            for some in _batches(fields.items()):
                with redis.pipeline(transaction=False) as pipe:
                    pipe.sadd(PROJECTS, _entry(project))
                    pipe.hset(_name(project, name), mapping={str(field): value for field, value in some})
                    pipe.execute()


def _name(project: ProjectRef, what: str) -> str:
    return f"rush:{project.slug}:{what}"


def _entry(project: ProjectRef) -> str:
    return json.dumps([project.origin, project.id])


def _text(a: Annotation) -> str:
    return json.dumps(
        [a.id, a.task, a.annotator, a.labels, a.skipped, a.lead_time, a.created_at, a.suggested, a.machine]
    )


def _annotation(text: str) -> Annotation:
    number, task, annotator, labels, *rest = json.loads(text)
    return Annotation(number, task, annotator, tuple(labels), *rest)


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of at most BATCH items, so that no command holds Redis up for long."""
    whole = list(items)
    for start in range(0, len(whole), BATCH):
        yield whole[start : start + BATCH]
