"""One project while people label it: what it answers, and what each event changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, assert_never

import strategies
from ml_backend.controls import Control, taken_in
from ml_backend.controls.lost_answers import LostAnswers
from ml_backend.domain.deadline import PROMPT, within
from ml_backend.domain.errors import UnusableConfig
from ml_backend.domain.events import (
    AuditSampleChanged,
    ControlChosen,
    Event,
    GenerationPublished,
    Ingested,
    MapPublished,
    Retired,
    StrategyChosen,
    Synced,
    WebhookPassedOn,
)
from ml_backend.domain.model import Annotation, AnnotationId, ContentKey, ProjectRef, Task, TaskId
from ml_backend.services.queue.audit_mix import Mixing
from ml_backend.services.queue.order import Move, Queue
from ml_backend.services.queue.pace import pace
from ml_backend.services.queue.pool import ProjectPool
from ml_backend.services.queue.suggest import suggest
from ml_backend.services.serving.loading import Loader, ProjectPorts
from ml_backend.wire import content_key_of, image_of, prediction

log = logging.getLogger(__name__)

DELETED_AT_ONCE = 1000
"""Tasks forgotten while submits wait."""


class Project:
    """One connected project in memory; every method may be called from any thread.

    Raises UnusableConfig where the label config has nothing to predict.
    """

    def __init__(self, ref: ProjectRef, ports: ProjectPorts) -> None:
        self.ref, self.ports = ref, ports
        self._unusable = ""
        self._lost = LostAnswers()
        self._loader = Loader(ref, ports)
        self.queue = Queue(ports.state, ports.settings.window, self._strategy())
        self.reload()

    @property
    def pool(self) -> ProjectPool:
        """The images of the project; another object after each reload."""
        return self._loader.pool

    @property
    def control(self) -> Control:
        """What the label config lets us predict."""
        return self.pool.control

    @property
    def label_config(self) -> str:
        """The label config that the pool was made for."""
        return self._loader.label_config

    @property
    def published(self) -> int | None:
        """The number of the generation that the pool was made with."""
        return self._loader.published

    def reload(self) -> None:
        """Make everything in memory anew from state, features and the current generation."""
        self._loader.load(lambda: self.queue.window.load(self.ref))
        self._choose_strategy()
        self._mix()
        self._count_lost_answers()

    def _choose_strategy(self) -> None:
        self.queue.strategy = self._strategy()

    def _strategy(self) -> str:
        name = self.ports.state.options(self.ref).get("strategy") or self.ports.settings.strategy
        try:
            strategies.get(name)
        except strategies.UnknownStrategy as error:
            log.warning("project %s: %s Using rush.", self.ref.id, error)
            return "rush"
        return name

    def _mix(self) -> None:
        """Take the current audit sample into the queue."""
        sample = self.ports.artifacts.audit_sample(self.ref)
        with self.queue.lock:
            self.queue.mixing = Mixing(sample)
            self.pool.hidden = frozenset(sample.audits if sample is not None and sample.hidden else ())

    def _count_lost_answers(self) -> None:
        lost = self.pool.lost_answers()
        if lost.count and lost != self._lost:
            log.warning("project %s: %s. They teach nothing.", self.ref.id, lost)
        self._lost = lost

    @property
    def outdated(self) -> bool:
        """Whether the current generation was trained for another label config than that of now."""
        generation, control = self.pool.generation, self.control
        if generation is None or generation.question:
            return generation is not None and generation.question != control.question
        learnt = set(generation.classes)
        return bool(learnt) and (
            generation.multiple != control.multiple or not learnt <= set(control.classes)
        )

    # ---- events in Label Studio

    def annotated(self, annotation: Annotation, task: Task | None = None) -> Move | None:
        """Someone submitted, changed or skipped: note it and put what comes next in front."""
        return self.all_annotated([annotation], [task] if task else []).get(annotation.annotator)

    def all_annotated(self, annotations: Sequence[Annotation], tasks: Sequence[Task] = ()) -> dict[int, Move]:
        """Note them all, then put one next task in front for each annotator, after their last answer."""
        state, came = self.ports.state, {task.id: task for task in tasks}
        last = {a.annotator: a for a in annotations if not a.machine}  # after a machine nobody waits
        if last:
            state.note_submit(self.ref)
        unknown = dict.fromkeys(a.task for a in annotations if not self.pool.has(a.task))
        if unknown:
            self.created([came.get(task) or Task(task, {}) for task in unknown])
        with self._loader.events:
            state.set_annotations(self.ref, annotations)
            pool = self.pool
            again = {who: pool.answered_by(answer.task, who) for who, answer in last.items()}

            def apply(pool: ProjectPool) -> None:
                for annotation in annotations:
                    pool.apply(annotation)

            self._loader.change(apply)
        moves = {
            who: self.queue.advance(pool, answer, self.ports.studio, again=again[who])
            for who, answer in last.items()
        }
        return {who: move for who, move in moves.items() if move is not None}

    def unannotated(self, annotations: Sequence[AnnotationId]) -> None:
        """Annotations were deleted."""
        with self._loader.events:
            self.ports.state.delete_annotations(self.ref, annotations)
            reopened: list[TaskId] = []
            self._loader.change(lambda pool: reopened.extend(pool.forget(annotations)))
        self.queue.window.reopen(reopened)

    def created(self, tasks: Sequence[Task]) -> None:
        """Tasks came in by whatever way; their images are embedded by a worker where they are not yet."""
        known = self.ports.state.tasks(self.ref, [task.id for task in tasks])
        keys = {task.id: known.get(task.id) or ContentKey(content_key_of(task)) for task in tasks}
        self.ports.state.set_tasks(self.ref, keys)
        self._loader.add(keys)
        lacking = set(self._loader.features.missing(key for key in keys.values() if key))
        images = {
            str(task.id): address
            for task in tasks
            if (not keys[task.id] or keys[task.id] in lacking) and (address := image_of(task, self.control))
        }
        if images:
            self.ports.jobs.enqueue("ingest", self.ref, images=images)
        elif self.pool.generation is None:
            self.ports.jobs.enqueue("lay_out_map", self.ref)

    def deleted(self, tasks: Sequence[TaskId]) -> None:
        """Tasks were deleted."""
        for start in range(0, len(tasks), DELETED_AT_ONCE):
            some = tasks[start : start + DELETED_AT_ONCE]
            with self._loader.events:
                self.ports.state.delete_tasks(self.ref, some)
                self._loader.change(partial(ProjectPool.remove, tasks=some))
        self.queue.window.forget(tasks)

    def configured(self, label_config: str) -> None:
        """The label config may have changed; a useless one raises UnusableConfig and changes nothing."""
        if not label_config or label_config == self.label_config:
            self._unusable = "" if label_config else self._unusable
            return
        try:
            control, change = taken_in(self.ports.state.options(self.ref), label_config)
        except UnusableConfig as error:
            self._unusable = error.message
            raise
        self._unusable = ""
        before = self.control
        self.ports.state.set_options(self.ref, **change)
        if (control.reading, control.image_key) != (before.reading, before.image_key):
            self.ports.jobs.enqueue("sync", self.ref)
        if control == before:
            self._loader.label_config = label_config
        else:
            self.reload()
            self._renew_front()

    # ---- events in our other processes

    def on_event(self, event: Event) -> None:
        """Another process did something."""
        match event:
            case Ingested(tasks):
                self._loader.add(self.ports.state.tasks(self.ref, tasks))
            case AuditSampleChanged():
                self._mix()
            case StrategyChosen():
                self._reorder(self._choose_strategy)
            case GenerationPublished() | ControlChosen():
                self.reload()
                self._renew_front()
            case MapPublished() | Synced():
                self._reorder(self.reload)
            case WebhookPassedOn() | Retired():
                raise AssertionError("These are for the registry, before a project hears of them.")
            case _:
                assert_never(event)

    def _reorder(self, change: Callable[[], None]) -> None:
        """Make a change; where it brings another strategy the front of the queue is renewed."""
        before = self.queue.strategy
        change()
        if self.queue.strategy != before:
            self._renew_front()

    def _renew_front(self) -> None:
        self.queue.rank(self.pool)
        self.queue.renew_front(self.pool, self.ports.studio)

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
        return [prediction(pool.control, shown[task.id], scores[task.id]) for task in tasks]

    def report(self) -> dict[str, Any]:
        """Where the project stands, for people and checks."""
        pool, generation, lost = self.pool, self.pool.generation, self.pool.lost_answers()
        return {
            "project": self.ref.id,
            "control": pool.control.from_name,
            "image_key": pool.control.image_key,
            "renames": dict(pool.control.renames),
            "lost_answers": dict(lost.names),
            "warnings": [line for line in (str(lost) if lost.count else "", self._unusable) if line],
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

    def check_index(self) -> None:
        """StoreError while the index is away."""
        with within(PROMPT):
            len(self._loader.index)

    def close(self) -> None:
        """Another process serves the project from now on."""
        self._loader.index.close()
