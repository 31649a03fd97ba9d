"""Import images so that the very request that creates the tasks carries map, window and identity.

Read and hash → embed what is new → lay out the map → import in the order in which the queue starts. Every
step is kept as soon as it is done: the same command run again goes on where it was cut off.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np

import strategies
from ml_backend.controls import Control
from ml_backend.domain.content_hash import KEY_BYTES, address_digest, content_key
from ml_backend.domain.errors import BadImage, BadRequest, Refused
from ml_backend.domain.events import Synced
from ml_backend.domain.generation import Floats, Projection
from ml_backend.domain.image_key import with_value
from ml_backend.domain.labels import resolve_labels
from ml_backend.domain.model import (
    EMPTY,
    MODEL_VERSION,
    ContentKey,
    LabelState,
    PredictionId,
    ProjectRef,
    Task,
    TaskId,
)
from ml_backend.ports import Embedder, Features, LabelStudio, State, TaskSink
from ml_backend.prefetch import in_order
from ml_backend.services.datasets.identity import Identity, beside, identity
from ml_backend.services.datasets.label_columns import with_labels
from ml_backend.services.datasets.sources import SourceItem
from ml_backend.services.learning.rounds import Learner
from ml_backend.services.syncing.sync import sync
from ml_backend.settings import Settings
from ml_backend.wire import content_key_of, coordinates, images_of, prediction

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 256
"""Features kept together."""
AT_ONCE = 1000
"""Tasks per import request."""
UPLOADS = 50
"""Files per upload request."""
UPLOAD_BYTES = 100_000_000
"""Bytes per upload request, unless one file alone is larger; Label Studio refuses 250 MiB."""

GIVE_UP = 20
"""Single tasks or files that are refused, while nothing is taken, before the import ends."""
THREADS = 4
AHEAD = 16

Progress = Callable[[str, int, int], None]
"""Hears the stage's name, how much of it is done, and all of it."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of the rows; ``skipped`` are (name, reason), ``notes`` what was left out of the others."""

    imported: int
    duplicates: int
    skipped: list[tuple[str, str]]
    seconds: float
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row whose image can be read: the image's content key, and what makes the task another than others."""

    item: SourceItem
    key: ContentKey
    images: tuple[str, ...]
    beside: str

    @property
    def identity(self) -> Identity:
        return identity(self.images, self.beside)

    @property
    def annotations(self) -> list[Any]:
        return list(self.item.task.get("annotations") or ())


@dataclass(slots=True)
class Importer:
    """Imports images into one project; NotFound or LabelStudioError where Label Studio fails as a whole."""

    ref: ProjectRef
    control: Control
    settings: Settings
    studio: LabelStudio
    sink: TaskSink
    state: State
    features: Features
    learner: Learner
    embedder: Callable[[], Embedder]
    progress: Progress = lambda stage, done, total: None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    served: set[Path] = field(default_factory=set)
    placed: dict[Path, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def run(self, images: Iterable[SourceItem]) -> ImportReport:
        """Import what is new; whatever can't be read, or is refused, is skipped and reported."""
        began = time.monotonic()
        found = [with_labels(item, self.control) for item in images]
        if not found:
            raise BadRequest("There is nothing to import.", "Give a folder or a list with images in it.")
        known = sync(self.ref, self.studio, self.state, self.control, features=self.features)
        rows = self._embed(found)
        fresh = self._fresh(rows, self._there(known.found, rows))
        imported: list[_Row] = []
        if fresh:
            self.progress("Laying out the map", 0, 1)
            projection = self.learner.map(self.ref, list(dict.fromkeys(row.key for row in fresh)))
            self.progress("Laying out the map", 1, 1)
            imported = self._import(fresh, projection)
            if any(row.annotations for row in imported):
                sync(self.ref, self.studio, self.state, self.control, features=self.features)
        self.state.publish(self.ref, Synced())
        for note in (note for row in imported for note in row.item.notes):
            self.notes[note] += 1
        notes = [f"{count} {'row' if count == 1 else 'rows'}: {note}" for note, count in self.notes.items()]
        seconds = time.monotonic() - began
        return ImportReport(len(imported), len(rows) - len(fresh), self.skipped, seconds, notes)

    # ---- reading and embedding

    def _embed(self, items: Sequence[SourceItem]) -> list[_Row]:
        """Give every readable image features; the rows that have one."""
        rows: list[_Row] = []
        bad: dict[ContentKey, str] = {}
        given: set[ContentKey] = set()

        def new() -> Iterator[tuple[str, bytes]]:
            for read, item in enumerate(items, 1):
                data = self._row(item, rows)
                if data is not None and (key := rows[-1].key) not in given:
                    given.add(key)
                    if key not in self.features:
                        yield key, data
                self.progress("Embedding", read, len(items))

        chunk: dict[ContentKey, Floats] = {}
        try:
            for name, outcome in self._stream(new()):
                if isinstance(outcome, Exception):
                    bad[ContentKey(name)] = str(outcome)
                    continue
                chunk[ContentKey(name)] = outcome
                if len(chunk) >= CHUNK:
                    self._keep(chunk)
        finally:  # what is computed is kept, whatever stops us
            self._keep(chunk)
        self.skipped += [(row.item.name, bad[row.key]) for row in rows if row.key in bad]
        return [row for row in rows if row.key not in bad]

    def _row(self, item: SourceItem, rows: list[_Row]) -> bytes | None:
        """The bytes of the item's image, once it is among the rows; None where it is skipped."""
        if item.problem:
            self.skipped.append((item.name, item.problem))
            return None
        try:
            first, *others = item.places
            data = self._read(first)
            key = content_key(data)
            images = [key, *(content_key(self._read(p)) if isinstance(p, Path) else p for p in others)]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this image's problem
            self.skipped.append((item.name, str(error) or type(error).__name__))
            return None
        data_beside = beside(item.task.get("data", {}), self.control.image_key)
        rows.append(_Row(item, key, tuple(images), data_beside))
        return data

    def _stream(self, images: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, Floats | Exception]]:
        """Embed; the network is loaded only where there is something new."""
        first = next(images, None)
        if first is None:
            return iter(())

        def again() -> Iterator[tuple[str, bytes]]:
            yield first
            yield from images

        return self.embedder().embed(again())

    def _keep(self, chunk: dict[ContentKey, Floats]) -> None:
        if chunk:
            self.features.append(list(chunk), np.stack(list(chunk.values())))
            chunk.clear()

    def _read(self, place: Path | str) -> bytes:
        if isinstance(place, str):
            return self.studio.download(place, self.ref.id)
        if place.stat().st_size > int(self.settings.max_image_mb * 1e6):
            raise BadImage(f"It is larger than {self.settings.max_image_mb:g} MB (RUSH_MAX_IMAGE_MB).")
        return place.read_bytes()

    # ---- what is there already

    def _there(self, tasks: Sequence[Task], rows: Sequence[_Row]) -> set[Identity]:
        """The identities of the project's tasks, of those that a row could equal.

        An image's content is known from the state or from Label Studio; where nobody has read it yet (a
        plain import a moment ago) it is read now. One that can't be read equals nothing.
        """
        besides = {row.beside for row in rows}
        at = {place: row.key for row in rows if isinstance(place := row.item.places[0], str)}
        others_at = {image for row in rows for image in row.images[1:]}
        known = self.state.tasks(self.ref)
        candidates: list[tuple[list[str], str]] = []
        for task in tasks:
            data_beside = beside(task.data, self.control.image_key)
            addresses = images_of(task, self.control)
            if data_beside in besides and addresses:
                first, *others = addresses
                key = at.get(first) or known.get(task.id) or content_key_of(task) or first
                candidates.append(([key, *others], data_beside))
        lengths = {len(row.images) for row in rows}
        unknown = {
            image
            for images, _ in candidates
            if len(images) in lengths
            for n, image in enumerate(images)
            if not (_is_content_key(image) or (n and image in others_at))
        }
        read = self._keys_at(sorted(unknown))
        return {identity([read.get(image, image) for image in images], rest) for images, rest in candidates}

    def _keys_at(self, addresses: Sequence[str]) -> dict[str, ContentKey]:
        def key(address: str) -> ContentKey | None:
            try:
                return content_key(self.studio.download(address, self.ref.id))
            except Exception:  # noqa: BLE001 - it equals nothing then
                return None

        found: dict[str, ContentKey] = {}
        with ThreadPoolExecutor(THREADS, "download") as pool:
            for n, (address, made) in enumerate(in_order(pool, key, ((a, a) for a in addresses), AHEAD), 1):
                if made is not None and not isinstance(made, BadImage):
                    found[address] = made
                self.progress("Reading what is there", n, len(addresses))
        return found

    def _fresh(self, rows: Sequence[_Row], there: set[Identity]) -> list[_Row]:
        """The rows that are no task yet, each once, with the answers of all that are the same."""
        fresh: dict[Identity, _Row] = {}
        for row in rows:
            if row.identity in there:
                if row.annotations:
                    self.notes["there already, so the label that it brings is not taken."] += 1
            elif (first := fresh.get(row.identity)) is None:
                fresh[row.identity] = row
            elif row.annotations:
                task = {**first.item.task, "annotations": first.annotations + row.annotations}
                fresh[row.identity] = replace(first, item=replace(first.item, task=task))
        return list(fresh.values())

    # ---- importing

    def _import(self, fresh: Sequence[_Row], projection: Projection) -> list[_Row]:
        """Make tasks of these rows; returns those that Label Studio took."""
        order = {key: n for n, key in enumerate(self._ordered([row.key for row in fresh], projection))}
        rows = sorted(fresh, key=lambda row: (bool(row.annotations), order[row.key]))  # open ones first
        still_open = sum(not row.annotations for row in rows)
        row_of = {str(key): row for row, key in enumerate(projection.keys)}
        waiting = sum(state is LabelState.OPEN for state in self._window_states())
        first = min(max(0, self.settings.window - waiting), still_open)
        taken: list[_Row] = []
        for start in range(0, len(rows), AT_ONCE):
            some = self._placed(rows[start : start + AT_ONCE])
            places = self.state.append_scores(self.ref, max(0, min(len(some), first - start)))
            tasks = [self._task(row, projection, row_of[row.key]) for row in some]
            for task, place in zip(tasks, places, strict=False):
                task["predictions"] = [*task["predictions"], prediction(self.control, EMPTY, place)]
            outcomes = self._send(tasks)
            made = {n: outcome for n, outcome in enumerate(outcomes) if isinstance(outcome, int)}
            self.skipped += [
                (some[n].item.name, str(outcome))
                for n, outcome in enumerate(outcomes)
                if not isinstance(outcome, int)
            ]
            self.state.set_tasks(self.ref, {task: some[n].key for n, task in made.items()})
            self.state.set_sources(
                self.ref,
                {task: address_digest(self._addresses(some[n].item)[0]) for n, task in made.items()},
            )
            self.state.set_window(
                self.ref,
                {made[n]: (PredictionId(0), float(place)) for n, place in enumerate(places) if n in made},
            )
            taken += [some[n] for n in made]
            self.progress("Importing", min(start + AT_ONCE, len(rows)), len(rows))
        return taken

    def _send(self, tasks: Sequence[dict[str, Any]]) -> list[TaskId | Exception]:
        """The id of each task, or why there is none."""
        each = partial(self._each, "tasks", partial(self.sink.import_tasks, self.ref.id))
        outcomes = each(tasks)
        for n, task in enumerate(tasks):
            if isinstance(outcomes[n], Refused) and (less := _without_strangers(task)) != task:
                outcomes[n] = each([less])[0]
                if isinstance(outcomes[n], int):
                    self.notes["taken without who answered, and without others' predictions."] += 1
        return outcomes

    def _each(
        self, what: str, send: Callable[[Sequence[T]], Sequence[R]], things: Sequence[T]
    ) -> list[R | Exception]:
        """What came of each thing: where some are refused together, the bad ones are found by halves.

        Raises the refusal where GIVE_UP of them were refused alone and none was ever taken.
        """
        if not things:
            return []
        try:
            answers = list(send(things))
        except (Refused, OSError) as error:
            if len(things) > 1:
                half = len(things) // 2
                return self._each(what, send, things[:half]) + self._each(what, send, things[half:])
            self.counts[f"{what} refused"] += 1
            if self.counts[f"{what} refused"] >= GIVE_UP and not self.counts[f"{what} taken"]:
                raise
            return [error]
        self.counts[f"{what} taken"] += len(answers)
        return [*answers]

    def _window_states(self) -> Iterator[LabelState]:
        settled = resolve_labels(self.state.annotations(self.ref))
        for task in self.state.window(self.ref):
            yield settled.get(task, (LabelState.OPEN, ()))[0]

    def _ordered(self, keys: Sequence[ContentKey], projection: Projection) -> list[ContentKey]:
        """In the order in which a queue without labels starts: typical images of each region first."""
        keys = list(dict.fromkeys(keys))
        row_of = {str(key): row for row, key in enumerate(projection.keys)}
        rows = np.array([row_of[key] for key in keys])
        everything, nothing = np.ones(len(rows), bool), np.zeros(len(rows), bool)
        pool = strategies.Pool(
            vectors=None,
            available=everything,
            labelled=nothing,
            answers=np.full(len(rows), -1),
            clusters=projection.cluster[rows],
            density=projection.density[rows],
        )
        return [keys[row] for row in strategies.select("typical", pool, len(rows)).rows]

    def _task(self, row: _Row, projection: Projection, at: int) -> dict[str, Any]:
        x, y = (float(value) for value in projection.xy[at])
        rush = coordinates(x, y, int(projection.cluster[at]), projection.generation, row.key)
        task, addresses = row.item.task, self._addresses(row.item)
        several = self.control.image_list or len(addresses) > 1
        image: Any = addresses if several else addresses[0]
        data = with_value(task.get("data", {}), self.control.image_key, image)
        if self.settings.coordinates == "data":
            data |= {f"rush_{name}": rush[name] for name in ("x", "y", "cluster")}
        if self.settings.coordinates == "off":
            rush = {"key": row.key}
        meta = {**task.get("meta", {}), "rush": rush}
        kept = [p for p in task.get("predictions", ()) if p.get("model_version") != MODEL_VERSION]
        return {**task, "data": data, "meta": meta, "predictions": kept}

    # ---- where Label Studio finds the images: in place, where it may read there, else uploaded

    def _addresses(self, item: SourceItem) -> list[str]:
        return [self.placed[place] if isinstance(place, Path) else place for place in item.places]

    def _placed(self, rows: Sequence[_Row]) -> list[_Row]:
        """Give each file an address, each file once; the rows that have one for all of their images."""
        files = [place for row in rows for place in row.item.places if isinstance(place, Path)]
        files = [file for file in dict.fromkeys(files) if file not in self.placed]
        folders: set[Path] = set()
        for file in files:
            if (below := self._below_root(file)) is not None:
                self.placed[file] = f"/data/local-files/?d={quote(str(below))}"
                folders.add(Path(self.settings.local_files_root).resolve() / below.parts[0])
        for folder in sorted(folders - self.served):
            self.sink.ensure_storage(self.ref.id, folder)
            self.served.add(folder)
        refused: dict[Path, str] = {}
        rest, done = [file for file in files if file not in self.placed], 0
        for some in _batches(rest):
            outcomes = self._each("files", partial(self.sink.upload, self.ref.id), some)
            for file, outcome in zip(some, outcomes, strict=True):
                if isinstance(outcome, str):
                    self.placed[file] = outcome
                else:
                    refused[file] = str(outcome)
            done += len(some)
            self.progress("Uploading", done, len(rest))
        kept = []
        for row in rows:
            problem = next((refused[p] for p in row.item.places if isinstance(p, Path) and p in refused), "")
            if problem:
                self.skipped.append((row.item.name, problem))
            else:
                kept.append(row)
        return kept

    def _below_root(self, path: Path) -> Path | None:
        """The path below Label Studio's document root; None where Label Studio can't serve it from there.

        Label Studio serves folders below the root only, never the root's own files.
        """
        root = self.settings.local_files_root
        if not root or not path.resolve().is_relative_to(Path(root).resolve()):
            return None
        below = path.resolve().relative_to(Path(root).resolve())
        return below if len(below.parts) > 1 else None


def _is_content_key(image: str) -> bool:
    return len(image) == 2 * KEY_BYTES and all(letter in "0123456789abcdef" for letter in image)


def _without_strangers(task: dict[str, Any]) -> dict[str, Any]:
    """The task without what refers to people and models that this Label Studio may not know."""
    answers = [
        {name: value for name, value in row.items() if name != "completed_by"}
        for row in task.get("annotations") or ()
    ]
    ours = [row for row in task["predictions"] if row.get("model_version") == MODEL_VERSION]
    return {**task, "predictions": ours, **({"annotations": answers} if answers else {})}


def _batches(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Files in order, as many at once as one request may carry."""
    batch: list[Path] = []
    size = 0
    for file in files:
        more = _size(file)
        if batch and (len(batch) == UPLOADS or size + more > UPLOAD_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += more
    if batch:
        yield batch


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # gone since it was read: its upload says so
        return 0
