"""The images of one project in memory: where each lies, who is labelled, as what.

A cache of ``State``, features and the current generation, made anew whenever one of them changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ml_backend.controls import Control
from ml_backend.controls.lost_answers import LostAnswers, lost_answers
from ml_backend.domain.generation import Array, Floats, Generation
from ml_backend.domain.labels import resolve_label
from ml_backend.domain.lock_order import OrderedLock, Rank
from ml_backend.domain.model import (
    SPACE_DIM,
    Annotation,
    AnnotationId,
    ContentKey,
    LabelState,
    ProjectRef,
    TaskId,
)
from ml_backend.ports import Features
from ml_backend.services.queue.columns import Columns
from ml_backend.services.queue.placement import Placement

GONE = -1
BLOCK = 1024
SCANNED_UP_TO = 50_000
"""Images up to which an index that does not answer is stood in for: some milliseconds a search."""


class Mirror(Protocol):
    """What follows a pool's changes, and an index that holds the same; see ``index_mirror``."""

    stale: str

    def upsert(self, pool: ProjectPool, rows: Array, vectors: Mapping[str, Floats]) -> None:
        """Rows have got their vectors."""

    def mark(self, pool: ProjectPool, row: int) -> None:
        """The state of a row may have changed."""

    def delete(self, tasks: Sequence[int]) -> None:
        """Tasks are gone."""

    def neighbours(
        self, space: str, vector: Floats, k: int, state: LabelState
    ) -> tuple[Array, Floats] | None:
        """Tasks and similarities; None while the index does not answer."""


class ProjectPool:
    """Arrays over the tasks of one project, one row per task; all access under ``lock``.

    Where there is a ``mirror`` its index hears of every change, and neighbours come from there.
    """

    def __init__(self, ref: ProjectRef, control: Control, generation: Generation | None) -> None:
        self.ref, self.control = ref, control
        if generation is not None:  # one that answers another question has no head here
            generation = generation.answering(control.from_name, multiple=control.multiple)
        self.generation = generation
        self.mirror: Mirror | None = None
        self.lock = OrderedLock(Rank.POOL)
        self.classes = control.columns
        learnt = () if generation is None else control.current(generation.classes)
        self.columns = Columns(control.classes, learnt)
        self.ids: Array = np.empty(0, np.int64)
        self.row_of: dict[TaskId, int] = {}
        self.states: Array = np.empty(0, np.int8)
        self.embedded: Array = np.empty(0, bool)
        self.raw: Floats = np.empty((0, SPACE_DIM), np.float32)
        self.head: Floats | None = None
        self.probabilities: Floats | None = None
        self.targets: Array = np.empty((0, len(self.columns)) if control.multiple else 0, np.int64)
        self.lost: npt.NDArray[np.bool_] = np.empty(0, bool)
        """Labelled rows whose answer has a name that is no class any more: what they show is not known."""
        self.answers: Array = np.empty(0, np.int64)
        self._sets: dict[tuple[str, ...], int] = {}
        self.clusters: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self.density: Floats = np.empty(0, np.float32)
        self.agreed: Floats = np.empty(0, np.float32)
        self._judged = generation.judged() if generation is not None else {}
        self.annotations: dict[AnnotationId, Annotation] = {}
        self.of_task: dict[TaskId, set[AnnotationId]] = {}
        self.hidden: frozenset[TaskId] = frozenset()  # tasks whose suggestion nobody is to see
        self.version = 0
        """Grows with every change that an order may depend on."""

    # ---- tasks

    def has(self, task: TaskId) -> bool:
        """Whether the task is known and was not deleted."""
        return task in self.row_of and bool(self.states[self.row_of[task]] != GONE)

    def answered_by(self, task: TaskId, annotator: int) -> bool:
        """Whether this annotator has answered or skipped the task."""
        with self.lock:
            return any(self.annotations[n].annotator == annotator for n in self.of_task.get(task, ()))

    def add(
        self,
        tasks: Mapping[TaskId, ContentKey],
        features: Features,
        place: Placement | None,
    ) -> None:
        """Add tasks, or give known tasks their image; an empty key means: image not embedded yet."""
        with self.lock:
            self._grow([task for task in tasks if task not in self.row_of])
            rows = np.array([self.row_of[task] for task in tasks], np.int64)
            self.states[rows[self.states[rows] == GONE]] = LabelState.OPEN
            ready = [task for task, key in tasks.items() if key and not self.embedded[self.row_of[task]]]
        if self.generation is None:
            return  # nothing tells yet where an image lies
        present = {tasks[task] for task in ready} - set(features.missing(tasks[task] for task in ready))
        ready = [task for task in ready if tasks[task] in present]
        for start in range(0, len(ready), BLOCK):
            block = ready[start : start + BLOCK]
            self._embed(self.generation, block, [tasks[task] for task in block], features, place)

    def _grow(self, fresh: Sequence[TaskId]) -> None:
        first, count = len(self.ids), len(fresh)
        if not count:
            return
        self.row_of.update(zip(fresh, range(first, first + count), strict=True))

        def longer(array: Array, fill: float) -> Array:
            return np.concatenate([array, np.full((count, *array.shape[1:]), fill, array.dtype)])

        self.ids = np.concatenate([self.ids, np.array(fresh, np.int64)])
        self.states, self.embedded = longer(self.states, LabelState.OPEN), longer(self.embedded, False)
        self.raw = longer(self.raw, 0)
        self.targets = longer(self.targets, self.control.no_target)
        self.lost = longer(self.lost, False)
        self.answers = longer(self.answers, -1)
        self.clusters, self.density = longer(self.clusters, 0), longer(self.density, 0)
        self.agreed = longer(self.agreed, np.nan)
        self.agreed[first:] = [self._judged.get(task, np.nan) for task in fresh]
        if self.generation is not None and self.generation.head is not None:
            empty = np.empty((0, SPACE_DIM), np.float32)
            self.head = longer(self.head if self.head is not None else empty, 0)
            none = np.empty((0, len(self.generation.classes)), np.float32)
            self.probabilities = longer(self.probabilities if self.probabilities is not None else none, 0)
        self.version += 1

    def _embed(
        self,
        generation: Generation,
        tasks: Sequence[TaskId],
        keys: Sequence[ContentKey],
        features: Features,
        place: Placement | None,
    ) -> None:
        found = features.get(keys)
        raw = generation.pca.encode(found)
        head = generation.head
        with self.lock:
            rows = np.array([self.row_of[task] for task in tasks])
            self.raw[rows] = raw
            vectors = {"raw": raw}
            if head is not None and self.head is not None and self.probabilities is not None:
                vectors["head"] = head.encode(found)
                self.head[rows] = vectors["head"]
                self.probabilities[rows] = head.probabilities(vectors["head"], multiple=self.control.multiple)
            if place is not None:
                self.clusters[rows], self.density[rows] = place.of(keys, raw)
            self.embedded[rows] = True
            if self.mirror is not None:
                self.mirror.upsert(self, rows, vectors)
            self.version += 1

    def remove(self, tasks: Iterable[TaskId]) -> None:
        """Tasks that were deleted in Label Studio."""
        with self.lock:
            gone = [task for task in tasks if task in self.row_of]
            for task in gone:
                for annotation in self.of_task.pop(task, ()):
                    self.annotations.pop(annotation, None)
                self._resolve(task, mark=False)
                self.states[self.row_of[task]], self.embedded[self.row_of[task]] = GONE, False
            if gone:
                self.version += 1
                if self.mirror is not None:
                    self.mirror.delete(gone)

    # ---- annotations

    def apply(self, annotation: Annotation) -> bool:
        """Note a new or changed annotation; False where its task is unknown or nothing changed."""
        with self.lock:
            if not self.has(annotation.task):
                return False
            before = self.annotations.get(annotation.id)
            self.annotations[annotation.id] = annotation
            self.of_task.setdefault(annotation.task, set()).add(annotation.id)
            self._resolve(annotation.task)
            return before != annotation

    def forget(self, annotations: Iterable[AnnotationId]) -> list[TaskId]:
        """Note deleted annotations; returns the tasks that they belonged to."""
        with self.lock:
            tasks: list[TaskId] = []
            for annotation in annotations:
                old = self.annotations.pop(annotation, None)
                if old is not None:
                    self.of_task.get(old.task, set()).discard(annotation)
                    tasks.append(old.task)
                    self._resolve(old.task)
            return tasks

    def _resolve(self, task: TaskId, *, mark: bool = True) -> None:
        """Derive a task's state and label from its annotations."""
        row = self.row_of[task]
        state, labels = resolve_label(self.annotations[number] for number in self.of_task.get(task, ()))
        labels, labelled = self.control.current(labels), state is LabelState.LABELLED
        self.states[row] = state
        self.version += 1
        teaches = labelled and self.control.teaches(labels)
        self.lost[row] = labelled and bool(self.control.lost(labels))
        self.answers[row] = self.answer_of(labels) if teaches else -1
        columns = self._columns_of(labels) if teaches else []
        if self.control.multiple:
            self.targets[row] = 0
            self.targets[row, columns] = 1
        else:
            self.targets[row] = columns[0] if columns else -1
        if mark and self.mirror is not None and self.embedded[row]:
            self.mirror.mark(self, row)

    def teaching_states(self, rows: Array) -> Array:
        """States as neighbours count: an answer without a label propagates nothing, as if skipped."""
        states = self.states[rows].copy()
        if not self.control.multiple:
            empty = (self.targets[rows] < 0) & ~self.lost[rows]
            states[(states == LabelState.LABELLED) & empty] = LabelState.SKIPPED
        return states

    def answer_of(self, labels: tuple[str, ...]) -> int:
        """A number for a set of classes: equal for equal sets, of one class its column; -1 for no answer."""
        key = self.control.answer(labels)
        if key is None:
            return -1
        if len(key) == 1:
            return self._columns_of(key)[0]
        return self._sets.setdefault(key, len(self.classes) + len(self._sets))

    def _columns_of(self, classes: Iterable[str]) -> list[int]:
        """The columns of classes, made where one is chosen for the first time."""
        names = list(classes)
        if self.columns.know(names) and self.control.multiple:
            more = len(self.columns) - self.targets.shape[1]
            self.targets = np.pad(self.targets, ((0, 0), (0, more)))
        return [self.columns.number[name] for name in names]

    def know(self, classes: Iterable[str]) -> None:
        """Give these classes of the label config columns, whether or not they were ever chosen."""
        with self.lock:
            self._columns_of(name for name in classes if name in self.classes)

    def labels_of(self, row: int) -> tuple[str, ...]:
        """The labels of a labelled row."""
        if self.control.multiple:
            return tuple(self.columns.names[n] for n in np.flatnonzero(self.targets[row]))
        return (self.columns.names[self.targets[row]],) if self.targets[row] >= 0 else ()

    def lost_answers(self) -> LostAnswers:
        """How many answers have a name that the label config no longer has, and which."""
        with self.lock:
            tasks = self.ids[self.lost & (self.states == LabelState.LABELLED)].tolist()
            notes = [self.annotations[number] for task in tasks for number in self.of_task.get(task, ())]
        return lost_answers(self.control, notes)

    # ---- views

    @property
    def space(self) -> str:
        """The embedding space that serves chains and diversity."""
        return self.generation.space if self.generation is not None and self.head is not None else "raw"

    def vectors(self, space: str) -> Floats:
        """(n, SPACE_DIM) unit vectors of all rows."""
        return self.head if space == "head" and self.head is not None else self.raw

    def is_open(self, task: TaskId) -> bool:
        """Whether the task is known and nobody has answered it."""
        row = self.row_of.get(task)
        return row is not None and bool(self.states[row] == LabelState.OPEN)

    def open(self) -> npt.NDArray[np.bool_]:
        """(n,) tasks that nobody has answered, as a copy of the caller's own."""
        return np.asarray(self.states == LabelState.OPEN)

    def counts(self) -> dict[str, int]:
        """How many tasks stand where."""
        alive = self.states != GONE
        return {
            "tasks": int(alive.sum()),
            "embedded": int((self.embedded & alive).sum()),
            "labelled": int((self.states == LabelState.LABELLED).sum()),
            "skipped": int((self.states == LabelState.SKIPPED).sum()),
            "machine": int((self.states == LabelState.MACHINE).sum()),
            "open": int((self.states == LabelState.OPEN).sum()),
        }

    def load_annotations(self, annotations: Iterable[Annotation]) -> None:
        """Replace all annotations and rebuild the index's states in one go."""
        with self.lock:
            touched = set(self.of_task)
            self.annotations, self.of_task = {}, {}
            for annotation in annotations:
                if annotation.task in self.row_of:
                    self.annotations[annotation.id] = annotation
                    self.of_task.setdefault(annotation.task, set()).add(annotation.id)
            chosen = {label for annotation in self.annotations.values() for label in annotation.labels}
            self.know(sorted(self.control.current(chosen)))  # together: each time the targets are copied
            for task in touched | set(self.of_task):
                self._resolve(task, mark=False)

    @property
    def stale(self) -> bool:
        """Whether the index has missed something and must be built anew."""
        return self.mirror is not None and bool(self.mirror.stale)

    @property
    def searched(self) -> frozenset[str]:
        """The spaces that neighbours are looked for in."""
        return frozenset({"raw"}) if self.generation is None else self.generation.searched

    def alive(self) -> Array:
        """Rows of embedded tasks that are still there."""
        return np.flatnonzero(self.embedded & (self.states != GONE))

    def neighbours(self, space: str, row: int, k: int, state: LabelState) -> list[tuple[int, float]]:
        """The at most ``k`` rows in that state that are nearest to a row, with their similarities."""
        vector = self.vectors(space)[row]
        found = None if self.mirror is None else self.mirror.neighbours(space, vector, k, state)
        if found is not None:
            pairs = zip(found[0].tolist(), found[1].tolist(), strict=True)
            return [(self.row_of[task], similarity) for task, similarity in pairs if task in self.row_of]
        if self.mirror is not None and len(self.ids) > SCANNED_UP_TO:
            return []  # people wait, and one submit may look for many neighbours
        rows = self.alive()
        rows = rows[self.teaching_states(rows) == state]
        near = self.vectors(space)[rows] @ vector
        best = np.argsort(-near, kind="stable")[:k]
        return list(zip(rows[best].tolist(), near[best].tolist(), strict=True))
