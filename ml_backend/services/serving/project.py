"""One project while people label it: what happens at each event, and what is done in between."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import strategies
from ml_backend.domain.generation import Generation
from ml_backend.domain.label_config import parse_label_config
from ml_backend.domain.model import Annotation, AnnotationId, ContentKey, LabelSpec, ProjectRef, Task, TaskId
from ml_backend.ports import Artifacts, Features, Index, Jobs, LabelStudio, State
from ml_backend.services.queue.audit_mix import Mixing
from ml_backend.services.queue.look_ahead import look_ahead
from ml_backend.services.queue.order import Move, Queue
from ml_backend.services.queue.pace import pace
from ml_backend.services.queue.placement import Placement
from ml_backend.services.queue.pool import ProjectPool
from ml_backend.services.queue.suggest import suggest
from ml_backend.settings import Settings
from ml_backend.wire import content_key_of, image_of, prediction

log = logging.getLogger(__name__)

LOW = 0.75
"""Part of the window that may be empty no more before it is refilled."""
QUIET = 0.7
"""Seconds after a submit in which refilling waits, unless the window is nearly empty."""


@dataclass(frozen=True, slots=True)
class ProjectPorts:
    """Everything a project needs from outside."""

    settings: Settings
    state: State
    artifacts: Artifacts
    features: Callable[[Generation | None], Features]
    jobs: Jobs
    studio: LabelStudio
    open_index: Callable[[ProjectRef], Index]


class Project:
    """One connected project in memory; every method may be called from any thread.

    Raises UnusableConfig where the label config has nothing to predict.
    """

    def __init__(self, ref: ProjectRef, backend: ProjectPorts) -> None:
        self.ref, self.backend = ref, backend
        self.index = backend.open_index(ref)
        options = backend.state.options(ref)
        self.label_config = options.get("label_config", "")
        self.queue = Queue(backend.state, backend.settings.window, self._strategy(options))
        self.pool = ProjectPool(ref, parse_label_config(self.label_config), None, self.index)
        self._loading, self._events = threading.Lock(), threading.Lock()
        self._missed: list[Callable[[ProjectPool], object]] = []
        self._place: Placement | None = None
        self._features = backend.features(None)
        self._published: int | None = None
        self._ranked_at = self._rank_seconds = 0.0
        self._trained_at, self._trained_labels = 0.0, 0
        self._synced_at = time.monotonic()
        self.reload()

    def _strategy(self, options: Mapping[str, str]) -> str:
        name = options.get("strategy") or self.backend.settings.strategy
        try:
            strategies.get(name)
        except strategies.UnknownStrategy as error:
            log.warning("project %s: %s Using rush.", self.ref.id, error)
            return "rush"
        return name

    # ---- loading

    def reload(self) -> None:
        """Make everything in memory anew from state, features and the current generation."""
        with self._loading:
            backend, ref = self.backend, self.ref
            options = backend.state.options(ref)
            self.label_config = options.get("label_config", "")
            self._published = backend.artifacts.generation_number(ref)
            generation = backend.artifacts.generation(ref)
            projection = backend.artifacts.projection(ref)
            fresh = ProjectPool(ref, parse_label_config(self.label_config), generation, self.index)
            place = None if projection is None else Placement(projection)
            with self._events:
                self._missed = []
            features = backend.features(generation)
            fresh.add(backend.state.tasks(ref), features, place, index=False)
            fresh.load_annotations(backend.state.annotations(ref))
            fresh.build_index(also=self.pool.searched)
            with self._events:
                self._place, self._features = place, features
                for change in self._missed:  # what happened while we were loading
                    change(fresh)
                self._missed = []
                fresh.mark_changes()
                fresh.version += self.pool.version
                self.pool = fresh
                self.queue.window.load(ref)
            self.queue.strategy = self._strategy(options)
            self._mix()
            if generation is not None:
                labels = int(generation.manifest.get("labels", 0))
                self._trained_labels = max(self._trained_labels, labels)

    def _mix(self) -> None:
        """Take the current audit sample into the queue."""
        sample = self.backend.artifacts.audit_sample(self.ref)
        with self.queue.lock:
            self.queue.mixing = Mixing(sample)
            self.pool.hidden = frozenset(sample.audits if sample is not None and sample.hidden else ())

    @property
    def spec(self) -> LabelSpec:
        """What the label config lets us predict."""
        return self.pool.spec

    # ---- events

    def annotated(self, annotation: Annotation, task: Task | None = None) -> Move | None:
        """Someone submitted, changed or skipped: note it and put what comes next in front."""
        state = self.backend.state
        if not annotation.machine:
            state.note_submit(self.ref)
        if not self.pool.has(annotation.task):
            self.created([task or Task(annotation.task, {})])
        with self._events:
            state.set_annotations(self.ref, [annotation])
            pool = self.pool
            again = pool.answered_by(annotation.task, annotation.annotator)
            self._change(lambda pool: pool.apply(annotation))
        if annotation.machine:
            return None  # nobody waits for a next one
        return self.queue.advance(pool, annotation, self.backend.studio, again=again)

    def _change(self, change: Callable[[ProjectPool], object]) -> None:
        """Change the pool, and the one that may be loading just now; the caller holds ``_events``."""
        change(self.pool)
        if self._loading.locked():
            self._missed.append(change)

    def unannotated(self, annotations: Sequence[AnnotationId]) -> None:
        """Annotations were deleted."""
        with self._events:
            self.backend.state.delete_annotations(self.ref, annotations)
            reopened: list[TaskId] = []
            self._change(lambda pool: reopened.extend(pool.forget(annotations)))
        self.queue.window.reopen(reopened)

    def created(self, tasks: Sequence[Task]) -> None:
        """Tasks came in by whatever way; their images are embedded by a worker where they are not yet."""
        known = self.backend.state.tasks(self.ref)
        keys = {task.id: known.get(task.id) or ContentKey(content_key_of(task)) for task in tasks}
        self.backend.state.set_tasks(self.ref, keys)
        self._add(keys)
        lacking = set(self._features.missing(key for key in keys.values() if key))
        images = {
            str(task.id): address
            for task in tasks
            if (not keys[task.id] or keys[task.id] in lacking) and (address := image_of(task, self.spec))
        }
        if images:
            self.backend.jobs.enqueue("ingest", self.ref, images=images)
        elif self.pool.generation is None:
            self.backend.jobs.enqueue("lay_out_map", self.ref)

    def _add(self, keys: Mapping[TaskId, ContentKey]) -> None:
        with self._events:
            place, features = self._place, self._features
            self._change(lambda pool: pool.add(keys, features, place))

    def deleted(self, tasks: Sequence[TaskId]) -> None:
        """Tasks were deleted."""
        with self._events:
            self.backend.state.delete_tasks(self.ref, tasks)
            self._change(lambda pool: pool.remove(tasks))
        self.queue.window.forget(tasks)

    def configured(self, label_config: str) -> None:
        """The label config may have changed; a useless one raises UnusableConfig and changes nothing."""
        if label_config and label_config != self.label_config:
            spec = parse_label_config(label_config)
            self.backend.state.set_options(self.ref, label_config=label_config)
            self.label_config = label_config
            if spec != self.spec:
                self.reload()

    def on_event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Another process did something: see ``State.publish``."""
        if event == "ingested":
            tasks = self.backend.state.tasks(self.ref)
            keys = {
                TaskId(int(task)): tasks[TaskId(int(task))]
                for task in fields.get("tasks", ())
                if task in tasks
            }
            self._add(keys)
            return
        if event == "audits":
            self._mix()
            return
        before = self.queue.strategy
        if event == "strategy":
            self.queue.strategy = self._strategy(self.backend.state.options(self.ref))
        else:
            self.reload()
        if event == "generation" or self.queue.strategy != before:
            self.queue.rank(self.pool)
            self.queue.renew_front(self.pool, self.backend.studio)

    # ---- answers

    def predictions(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """One prediction per task, in order, each with a place in the queue; empty for unknown images."""
        unknown = [task for task in tasks if not self.pool.has(task.id)]
        if unknown:
            self.created(unknown)
        pool = self.pool
        suggestions = suggest(pool, [pool.row_of[task.id] for task in tasks])
        scores = {task.id: place.score for task in tasks if (place := self.queue.window.places.get(task.id))}
        shown = dict(zip((task.id for task in tasks), suggestions, strict=True))
        fresh = [task for task in shown if task not in scores]
        added = self.queue.window.append(pool, fresh, [shown[task] for task in fresh])
        scores.update(zip(fresh, added, strict=True))
        return [prediction(pool.spec, shown[task.id], scores[task.id]) for task in tasks]

    def report(self) -> dict[str, Any]:
        """Where the project stands, for people and checks."""
        pool, generation = self.pool, self.pool.generation
        return {
            "project": self.ref.id,
            "strategy": self.queue.strategy,
            "fallback": self.queue.fallback,
            "audits": len(self.queue.mixing),
            "window": len(self.queue.window.open(pool)),
            "next": {str(who): session.next for who, session in list(self.queue.sessions.items())},
            **pool.counts(),
            "generation": None if generation is None else generation.number,
            "suggester": None if generation is None else generation.suggester,
            "space": pool.space,
            "pace": pace(list(pool.annotations.values()), {} if generation is None else generation.manifest),
        }

    def close(self) -> None:
        """Another process serves the project from now on."""
        self.index.close()

    # ---- in between

    def run_maintenance(self) -> None:
        """Do what is due: rank, look ahead, refill, number the window's rows, start training, sync."""
        now, settings = time.monotonic(), self.backend.settings
        if self.backend.artifacts.generation_number(self.ref) != self._published:
            self.on_event("generation", {})  # its event was lost
        pool, queue, studio = self.pool, self.queue, self.backend.studio
        if queue.stale(pool) and now - self._ranked_at > max(0.2, 10 * self._rank_seconds):
            queue.rank(pool)
            self._ranked_at, self._rank_seconds = time.monotonic(), time.monotonic() - now
        look_ahead(queue, pool, studio)
        filled = len(queue.window.open(pool)) / queue.size
        calm = self.backend.state.seconds_since_submit(self.ref) > QUIET
        if filled < LOW / 3 or (filled < LOW and calm):
            queue.refill(pool, studio)
        elif calm:
            queue.window.resolve(pool, studio)
        labels = pool.counts()["labelled"]
        due = labels - self._trained_labels >= settings.train_labels
        if due and now - self._trained_at >= settings.train_seconds:
            self.backend.jobs.enqueue("train", self.ref)
            self._trained_at, self._trained_labels = now, labels
        if settings.sync_seconds and now - self._synced_at >= settings.sync_seconds:
            self.backend.jobs.enqueue("sync", self.ref)
            self._synced_at = now
