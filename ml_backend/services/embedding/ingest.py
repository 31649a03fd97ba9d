"""Worker side of import: download images, embed those that are new, tell everybody.

A picture may kill the process that decodes it. So a run notes what it is about to read; what a killed run
had under way, its next run reads one at a time, and an image that was so at two deaths is passed over.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np

from ml_backend.domain.content_hash import address_digest, content_key
from ml_backend.domain.errors import BadImage, RushError
from ml_backend.domain.events import Ingested
from ml_backend.domain.generation import Floats
from ml_backend.domain.model import ContentKey, ProjectRef, TaskId
from ml_backend.domain.unread import given_up, tried
from ml_backend.ports import Embedder, Features, LabelStudio, State
from ml_backend.prefetch import in_order

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

THREADS = 4
AHEAD = 16
"""Images in memory between download and embedding."""
NOTED = 32
"""Addresses noted at a time, before they are read."""
DEATHS = 2
"""Workers that an image may kill."""
FIRST_CHUNK = 32
LARGEST = float(np.finfo(np.float16).max)
"""What the features' files hold."""
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

    A task whose image was read before, at this address, keeps its key; any other is judged by what its
    address shows now. No image is computed twice. Images that can't be read are reported, noted and skipped.
    ``progress`` hears (tasks done, all tasks). Raises StoreError where Redis or the files fail.
    """
    run = _Ingest(ref, tasks, studio, state, features, progress)
    run.take_known()
    suspects = run.suspects()
    with ThreadPoolExecutor(THREADS, "download") as pool:
        size = FIRST_CHUNK
        chunk: dict[ContentKey, Floats] = {}
        alone = run.one_at_a_time(suspects, pool, embedder)
        for name, outcome in chain(alone, embedder.embed(run.new_images(pool, run.wanted(suspects)))):
            key = ContentKey(name)
            if isinstance(outcome, Exception):
                run.problems[key] = str(outcome)
            elif not np.isfinite(outcome).all() or np.abs(outcome).max(initial=0) > LARGEST:
                run.problems[key] = "Its features are no finite numbers."
            else:
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
    digest_of: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, ContentKey] = field(default_factory=dict)
    problems: dict[ContentKey, str] = field(default_factory=dict)
    embedded: dict[TaskId, ContentKey] = field(default_factory=dict)
    failed: dict[TaskId, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    deadly: set[str] = field(default_factory=set)
    storing: threading.Lock = field(default_factory=threading.Lock)

    def take_known(self) -> None:
        """Settle the tasks whose image was read before; the others' addresses are to be read."""
        digests = {address: address_digest(address) for address in set(self.tasks.values())}
        keys = {
            task: key
            for task, (key, source) in self.state.read_before(self.ref, list(self.tasks)).items()
            if source in ("", digests[self.tasks[task]])
        }
        missing = set(self.features.missing(keys.values()))
        keys = {task: key for task, key in keys.items() if key not in missing}
        for task, address in self.tasks.items():
            if task not in keys:
                self.tasks_at.setdefault(address, []).append(task)
                self.digest_of[address] = digests[address]
        self._settle(keys)

    def suspects(self) -> list[str]:
        """The addresses that a run of just this job was reading when it was killed, and older suspects."""
        deaths = self.state.suspects(self.ref)
        if left := self.state.reading(self.ref, self._name()) & set(self.digest_of.values()):
            deaths |= {digest: deaths.get(digest, 0) + 1 for digest in left}
            self.state.set_suspects(self.ref, {digest: deaths[digest] for digest in left})
        self.state.end_reading(self.ref, self._name())
        mine = {address: deaths[digest] for address, digest in self.digest_of.items() if digest in deaths}
        self._pass_over({address: number for address, number in mine.items() if number >= DEATHS})
        return [address for address, number in mine.items() if number < DEATHS]

    def one_at_a_time(
        self, suspects: Iterable[str], pool: ThreadPoolExecutor, embedder: Embedder
    ) -> Iterator[tuple[str, Floats | Exception]]:
        """Embed each suspect alone, so that another death says which one it is."""
        for address in suspects:
            yield from embedder.embed(self.new_images(pool, [address]))
            self.state.set_suspects(self.ref, {self.digest_of[address]: 0})
            self.state.end_reading(self.ref, self._name())

    def wanted(self, suspects: Iterable[str]) -> list[str]:
        """The addresses that nobody suspects, in the order of the tasks."""
        others = {*suspects, *self.deadly}
        return [address for address in self.tasks_at if address not in others]

    def _pass_over(self, deadly: Mapping[str, int]) -> None:
        """Give up, at once and for good, what killed too many workers."""
        before, found = self.state.unread(self.ref) if deadly else {}, {}
        for address, deaths in deadly.items():
            self.deadly.add(address)
            digest, why = self.digest_of[address], f"Reading it killed a worker {deaths} times."
            found[digest] = given_up(before.get(digest), self.tasks_at[address][0], why)
            self._fail(address, why)
        self.state.set_unread(self.ref, found)

    def new_images(self, pool: ThreadPoolExecutor, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """(content key, bytes) of each image without features, once, in the order of ``wanted``."""
        given = set(self.waiting.values())
        known = 0
        for address, data in images(pool, self.studio, self.ref, self._noted(wanted)):
            if isinstance(data, BadImage):
                if not isinstance(data, _NotItsFault):
                    self.unreadable[address] = str(data)
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
            done = {address: key for address, key in waiting.items() if key not in missing}
            if done:
                tasks = {task: key for address, key in done.items() for task in self.tasks_at[address]}
                self.state.set_sources(self.ref, {task: self.digest_of[self.tasks[task]] for task in tasks})
                self.state.drop_unread(self.ref, {self.digest_of[address] for address in done})
                self._settle(tasks)
                for address in done:
                    self.waiting.pop(address, None)

    def finish(self) -> IngestReport:
        """The report, once everything is stored: what still waits has no features."""
        for address, key in self.waiting.items():
            self.unreadable[address] = self.problems.get(key, "The embedder skipped this image.")
            self._fail(address, self.unreadable[address])
        self._note_unread()
        self.state.end_reading(self.ref, self._name())
        return IngestReport(self.embedded, self.failed)

    def _noted(self, addresses: Iterable[str]) -> Iterator[str]:
        left = iter(addresses)
        while some := list(islice(left, NOTED)):
            self.state.note_reading(self.ref, self._name(), [self.digest_of[address] for address in some])
            yield from some

    def _name(self) -> str:
        """The same for two runs of one job, of which the first was killed; never two at once."""
        text = "\n".join(f"{task} {address}" for task, address in self.tasks.items())
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _note_unread(self) -> None:
        if not self.unreadable:
            return
        before, now, found = self.state.unread(self.ref), time.time(), {}
        for address, why in self.unreadable.items():
            digest = self.digest_of[address]
            found[digest] = tried(before.get(digest), self.tasks_at[address][0], why, now)
        self.state.set_unread(self.ref, found)

    def _settle(self, tasks: Mapping[TaskId, ContentKey]) -> None:
        if not tasks:
            return
        self.state.set_tasks(self.ref, tasks)
        self.embedded.update(tasks)
        self.state.publish(self.ref, Ingested(tuple(tasks)))
        self.progress(len(self.embedded) + len(self.failed), len(self.tasks))

    def _fail(self, address: str, problem: str) -> None:
        for task in self.tasks_at[address]:
            self.failed[task] = problem
        first, *more = self.tasks_at[address]
        also = f" (and {len(more)} more with this image)" if more else ""
        log.warning("project %s, task %s%s: %s", self.ref.id, first, also, problem)
        self.progress(len(self.embedded) + len(self.failed), len(self.tasks))


def ask_again(ref: ProjectRef, state: State) -> None:
    """A person asks: what could not be read is tried anew, and what killed workers may kill one more."""
    state.drop_unread(ref)
    deaths = state.suspects(ref)
    state.set_suspects(ref, {digest: min(number, DEATHS - 1) for digest, number in deaths.items()})


class _NotItsFault(BadImage):
    """Label Studio did not answer, or not this token: the image itself may be fine."""


def downloads(ref: ProjectRef, studio: LabelStudio, addresses: Iterable[str]) -> Iterator[bytes]:
    """The bytes at these addresses, one after the other; what can't be read is left out."""
    for address in addresses:
        with suppress(RushError, OSError, ValueError):
            yield studio.download(address, ref.id)


def images(
    pool: ThreadPoolExecutor, studio: LabelStudio, ref: ProjectRef, addresses: Iterable[str]
) -> Iterator[tuple[str, bytes | BadImage]]:
    """(address, its image's bytes or what went wrong) in order, downloaded a little ahead."""

    def download(address: str) -> bytes:
        try:
            return studio.download(address, ref.id)
        except BadImage:
            raise
        except RushError as error:
            raise _NotItsFault(str(error)) from error

    return in_order(pool, download, ((address, address) for address in addresses), AHEAD)
