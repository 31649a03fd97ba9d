"""Import images so that the very request that creates the tasks carries map, window and identity.

Read and hash → embed what is new → lay out the map → import in the order in which the queue starts. Every
step is kept as soon as it is done: the same command run again goes on where it was cut off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

import strategies
from ml_backend.controls import Control
from ml_backend.domain.content_hash import address_digest, content_key
from ml_backend.domain.errors import BadRequest, RushError
from ml_backend.domain.events import Synced
from ml_backend.domain.generation import Floats, Projection
from ml_backend.domain.labels import resolve_labels
from ml_backend.domain.model import (
    EMPTY,
    MODEL_VERSION,
    ContentKey,
    LabelState,
    PredictionId,
    ProjectRef,
)
from ml_backend.ports import Embedder, Features, LabelStudio, State, TaskSink
from ml_backend.services.datasets.sources import SourceItem
from ml_backend.services.learning.rounds import Learner
from ml_backend.services.syncing.sync import sync
from ml_backend.settings import Settings
from ml_backend.wire import coordinates, prediction

CHUNK = 256
"""Features kept together."""
AT_ONCE = 1000
"""Tasks per import request."""
UPLOADS = 50
"""Files per upload request."""
UPLOAD_BYTES = 100_000_000
"""Bytes per upload request, unless one file alone is larger; Label Studio refuses 250 MiB."""

Progress = Callable[[str, int, int], None]
"""Hears the stage's name, how much of it is done, and all of it."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of the images; ``skipped`` are (name, reason)."""

    imported: int
    duplicates: int
    skipped: list[tuple[str, str]]
    seconds: float


@dataclass(slots=True)
class Importer:
    """Imports images into one project; NotFound or LabelStudioError where Label Studio refuses."""

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
    served: set[Path] = field(default_factory=set)

    def run(self, images: Iterable[SourceItem]) -> ImportReport:
        """Import what is new; whatever can't be read is skipped and reported."""
        began = time.monotonic()
        found = list(images)
        if not found:
            raise BadRequest("There is nothing to import.", "Give a folder or a list with images in it.")
        sync(self.ref, self.studio, self.state, self.control, features=self.features)
        keyed = self._embed(found)
        there = set(self.state.tasks(self.ref).values())
        fresh = {key: image for key, image in keyed.items() if key not in there}
        if fresh:
            self.progress("Laying out the map", 0, 1)
            projection = self.learner.map(self.ref, list(fresh))
            self.progress("Laying out the map", 1, 1)
            self._import(fresh, projection)
            if any(image.task.get("annotations") for image in fresh.values()):
                sync(self.ref, self.studio, self.state, self.control, features=self.features)
        self.state.publish(self.ref, Synced())
        duplicates = len(found) - len(self.skipped) - len(fresh)
        return ImportReport(len(fresh), duplicates, self.skipped, time.monotonic() - began)

    # ---- reading and embedding

    def _embed(self, images: Sequence[SourceItem]) -> dict[ContentKey, SourceItem]:
        """Give every readable image features; the first image of each content key."""
        keyed: dict[ContentKey, SourceItem] = {}
        bad: dict[ContentKey, str] = {}
        copies: list[tuple[ContentKey, SourceItem]] = []
        read = 0

        def new() -> Iterator[tuple[str, bytes]]:
            nonlocal read
            for image in images:
                read += 1
                data = self._read(image)
                if isinstance(data, str):
                    self.skipped.append((image.name, data))
                elif (key := content_key(data)) in keyed:
                    copies.append((key, image))
                else:
                    keyed[key] = image
                    if key not in self.features:
                        yield key, data
                self.progress("Embedding", read, len(images))

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
        for key, image in (*keyed.items(), *copies):
            if key in bad:
                self.skipped.append((image.name, bad[key]))
        return {key: image for key, image in keyed.items() if key not in bad}

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

    def _read(self, image: SourceItem) -> bytes | str:
        """The image's bytes, or why there are none."""
        if image.problem:
            return image.problem
        limit = int(self.settings.max_image_mb * 1e6)
        try:
            if image.path is None:
                return self.studio.download(image.address, self.ref.id)
            if image.path.stat().st_size > limit:
                return f"It is larger than {self.settings.max_image_mb:g} MB (RUSH_MAX_IMAGE_MB)."
            return image.path.read_bytes()
        except (OSError, RushError) as error:
            return str(error)

    # ---- importing

    def _import(self, fresh: Mapping[ContentKey, SourceItem], projection: Projection) -> None:
        labelled = {key for key, image in fresh.items() if image.task.get("annotations")}
        keys = sorted(self._ordered(list(fresh), projection), key=labelled.__contains__)  # open ones first
        row_of = {str(key): row for row, key in enumerate(projection.keys)}
        waiting = sum(state is LabelState.OPEN for state in self._window_states())
        first = min(max(0, self.settings.window - waiting), len(keys) - len(labelled))
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            places = self.state.append_scores(self.ref, max(0, min(len(some), first - start)))
            addresses = self._addresses([fresh[key] for key in some])
            tasks = [
                self._task(key, fresh[key], address, projection, row_of[key])
                for key, address in zip(some, addresses, strict=True)
            ]
            for task, place in zip(tasks, places, strict=False):
                task["predictions"] = [*task["predictions"], prediction(self.control, EMPTY, place)]
            ids = self.sink.import_tasks(self.ref.id, tasks)
            self.state.set_tasks(self.ref, dict(zip(ids, some, strict=True)))
            self.state.set_sources(self.ref, dict(zip(ids, map(address_digest, addresses), strict=True)))
            self.state.set_window(
                self.ref, {task: (PredictionId(0), float(p)) for task, p in zip(ids, places, strict=False)}
            )
            self.progress("Importing", start + len(some), len(keys))

    def _window_states(self) -> Iterator[LabelState]:
        settled = resolve_labels(self.state.annotations(self.ref))
        for task in self.state.window(self.ref):
            yield settled.get(task, (LabelState.OPEN, ()))[0]

    def _ordered(self, keys: list[ContentKey], projection: Projection) -> list[ContentKey]:
        """In the order in which a queue without labels starts: typical images of each region first."""
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

    def _task(
        self, key: ContentKey, image: SourceItem, address: str, projection: Projection, row: int
    ) -> dict[str, Any]:
        x, y = (float(value) for value in projection.xy[row])
        rush = coordinates(x, y, int(projection.cluster[row]), projection.generation, key)
        data = {**image.task.get("data", {}), self.control.image_key: address}
        if self.settings.coordinates == "data":
            data |= {f"rush_{name}": rush[name] for name in ("x", "y", "cluster")}
        if self.settings.coordinates == "off":
            rush = {"key": key}
        meta = {**image.task.get("meta", {}), "rush": rush}
        kept = [p for p in image.task.get("predictions", ()) if p.get("model_version") != MODEL_VERSION]
        return {**image.task, "data": data, "meta": meta, "predictions": kept}

    def _addresses(self, images: Sequence[SourceItem]) -> list[str]:
        """Where Label Studio finds each image: in place, where it may read there, else uploaded."""
        addresses = [image.address for image in images]
        folders: set[Path] = set()
        for n, image in enumerate(images):
            below = self._below_root(image.path)
            if below is not None:
                addresses[n] = f"/data/local-files/?d={quote(str(below))}"
                folders.add(Path(self.settings.local_files_root).resolve() / below.parts[0])
        for folder in sorted(folders - self.served):
            self.sink.ensure_storage(self.ref.id, folder)
            self.served.add(folder)
        rest = [n for n, address in enumerate(addresses) if not address]
        done = 0
        for files in _batches([path for n in rest if (path := images[n].path)]):
            some = rest[done : done + len(files)]
            for n, address in zip(some, self.sink.upload(self.ref.id, files), strict=True):
                addresses[n] = address
            done += len(files)
            self.progress("Uploading", done, len(rest))
        return addresses

    def _below_root(self, path: Path | None) -> Path | None:
        """The path below Label Studio's document root; None where Label Studio can't serve it from there.

        Label Studio serves folders below the root only, never the root's own files.
        """
        root = self.settings.local_files_root
        if not root or path is None or not path.resolve().is_relative_to(Path(root).resolve()):
            return None
        below = path.resolve().relative_to(Path(root).resolve())
        return below if len(below.parts) > 1 else None


def _batches(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Files in order, as many at once as one request may carry."""
    batch: list[Path] = []
    size = 0
    for file in files:
        more = file.stat().st_size
        if batch and (len(batch) == UPLOADS or size + more > UPLOAD_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += more
    if batch:
        yield batch
