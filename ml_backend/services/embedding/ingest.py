"""Worker side of import: download images, embed those that are new, tell everybody."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ml_backend.domain.content_hash import content_key
from ml_backend.domain.errors import BadImage, RushError
from ml_backend.domain.events import Ingested
from ml_backend.domain.generation import Floats
from ml_backend.domain.model import ContentKey, ProjectRef, TaskId
from ml_backend.ports import Embedder, Features, LabelStudio, State
from ml_backend.prefetch import in_order

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

THREADS = 4
AHEAD = 16
"""Images in memory between download and embedding."""
FIRST_CHUNK = 32
CHUNK = 256
"""Images stored and published together; the first chunk is small so that a newcomer sees something soon."""


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Tasks whose image has features now, and the reason for each that has none."""

    embedded: dict[TaskId, ContentKey]
    failed: dict[TaskId, str]


def ingest(
    ref: ProjectRef,
    tasks: Mapping[TaskId, str],
    studio: LabelStudio,
    state: State,
    features: Features,
    embedder: Embedder,
    progress: Progress = lambda done, total: None,
) -> IngestReport:
    """Embed the images at these addresses and note their content keys; a killed run resumes where it was.

    Known images are not computed again, images that can't be read are reported and skipped.
    ``progress`` hears (tasks done, all tasks). Raises StoreError where Redis or the files fail.
    """
    run = _Ingest(ref, tasks, studio, state, features, progress)
    run.take_known()
    with ThreadPoolExecutor(THREADS, "download") as pool:
        size = FIRST_CHUNK
        chunk: dict[ContentKey, Floats] = {}
        for name, outcome in embedder.embed(run.new_images(pool)):
            key = ContentKey(name)
            if isinstance(outcome, Exception):
                run.problems[key] = str(outcome)
                continue
            chunk[key] = outcome
            if len(chunk) >= size:
                run.store(chunk)
                chunk, size = {}, CHUNK
        run.store(chunk)
    return run.finish()


@dataclass(slots=True)
class _Ingest:
    """One run; ``new_images`` may be consumed in a thread of the embedder's."""

    ref: ProjectRef
    tasks: Mapping[TaskId, str]
    studio: LabelStudio
    state: State
    features: Features
    progress: Progress
    tasks_at: dict[str, list[TaskId]] = field(default_factory=dict)
    waiting: dict[str, ContentKey] = field(default_factory=dict)
    problems: dict[ContentKey, str] = field(default_factory=dict)
    embedded: dict[TaskId, ContentKey] = field(default_factory=dict)
    failed: dict[TaskId, str] = field(default_factory=dict)
    storing: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for task, address in self.tasks.items():
            self.tasks_at.setdefault(address, []).append(task)

    def take_known(self) -> None:
        """Settle the addresses that were read before."""
        addresses = list(self.tasks_at)
        seen = self.state.keys_of([self._source(address) for address in addresses])
        keys = {address: key for address, key in zip(addresses, seen, strict=True) if key}
        missing = set(self.features.missing(keys.values()))
        self._note_keys({address: key for address, key in keys.items() if key not in missing})

    def new_images(self, pool: ThreadPoolExecutor) -> Iterator[tuple[str, bytes]]:
        """(content key, bytes) of each image without features, once, in the order of the tasks."""
        wanted = [address for address, tasks in self.tasks_at.items() if tasks[0] not in self.embedded]
        given: set[ContentKey] = set()
        known = 0
        for address, data in images(pool, self.studio, self.ref, wanted):
            if isinstance(data, BadImage):
                self._fail(address, str(data))
                continue
            key = content_key(data)
            self.waiting[address] = key
            if key in self.features:
                known += 1
                if known % CHUNK == 0:
                    self.store({})
            elif key not in given:
                given.add(key)
                yield key, data

    def store(self, chunk: Mapping[ContentKey, Floats]) -> None:
        """Keep these features and settle every address that was waiting for them."""
        with self.storing:
            if chunk:
                self.features.append(list(chunk), np.stack(list(chunk.values())))
            waiting = self.waiting.copy()
            missing = set(self.features.missing(waiting.values()))
            self._note_keys({address: key for address, key in waiting.items() if key not in missing})

    def finish(self) -> IngestReport:
        """The report, once everything is stored: what still waits has no features."""
        for address, key in self.waiting.items():
            self._fail(address, self.problems.get(key, "The embedder skipped this image."))
        return IngestReport(self.embedded, self.failed)

    def _note_keys(self, keys: Mapping[str, ContentKey]) -> None:
        if not keys:
            return
        tasks = {task: key for address, key in keys.items() for task in self.tasks_at[address]}
        self.state.set_keys({self._source(address): key for address, key in keys.items()})
        self.state.set_tasks(self.ref, tasks)
        self.embedded.update(tasks)
        for address in keys:
            self.waiting.pop(address, None)
        self.state.publish(self.ref, Ingested(tuple(tasks)))
        self.progress(len(self.embedded) + len(self.failed), len(self.tasks))

    def _fail(self, address: str, problem: str) -> None:
        for task in self.tasks_at[address]:
            self.failed[task] = problem
            log.warning("project %s, task %s: %s", self.ref.id, task, problem)
        self.progress(len(self.embedded) + len(self.failed), len(self.tasks))

    def _source(self, address: str) -> str:
        return f"{self.ref.origin} {address}"


def images(
    pool: ThreadPoolExecutor, studio: LabelStudio, ref: ProjectRef, addresses: Iterable[str]
) -> Iterator[tuple[str, bytes | BadImage]]:
    """(address, its image's bytes or what went wrong) in order, downloaded a little ahead."""

    def download(address: str) -> bytes:
        try:
            return studio.download(address, ref.id)
        except (RushError, OSError, ValueError) as error:
            raise BadImage(str(error) or type(error).__name__) from error

    return in_order(pool, download, ((address, address) for address in addresses), AHEAD)
