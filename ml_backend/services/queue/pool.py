"""The images of one project in memory: where each lies, who is labelled, as what.

A cache of ``State``, features and the current generation, made anew whenever one of them changes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ml_backend.domain.generation import Array, Floats, Generation
from ml_backend.domain.labels import resolve_label
from ml_backend.domain.model import (
    SPACE_DIM,
    Annotation,
    AnnotationId,
    ContentKey,
    LabelSpec,
    LabelState,
    ProjectRef,
    TaskId,
)
from ml_backend.ports import Features, Index
from ml_backend.services.queue.placement import Placement

GONE = -1
BLOCK = 1024


class ProjectPool:
    """Arrays over the tasks of one project, one row per task; all access under ``lock``."""

    def __init__(self, ref: ProjectRef, spec: LabelSpec, generation: Generation | None, index: Index) -> None:
        self.ref, self.spec, self.generation, self.index = ref, spec, generation, index
        self.lock = threading.RLock()
        self.classes = {label: position for position, label in enumerate(spec.classes)}
        self.ids: Array = np.empty(0, np.int64)
        self.row_of: dict[TaskId, int] = {}
        self.states: Array = np.empty(0, np.int8)
        self.embedded: Array = np.empty(0, bool)
        self.raw: Floats = np.empty((0, SPACE_DIM), np.float32)
        self.head: Floats | None = None
        self.probabilities: Floats | None = None
        width = (len(spec.classes),) if spec.multiple else ()
        self.targets: Array = np.empty((0, *width), np.int64)
        self.answers: Array = np.empty(0, np.int64)
        self.answer_ids: dict[tuple[str, ...], int] = {(label,): n for label, n in self.classes.items()}
        self.clusters: npt.NDArray[np.int32] = np.empty(0, np.int32)
        self.density: Floats = np.empty(0, np.float32)
        self.agreed: Floats = np.empty(0, np.float32)
        self._judged = generation.judged() if generation is not None else {}
        self.annotations: dict[AnnotationId, Annotation] = {}
        self.of_task: dict[TaskId, set[AnnotationId]] = {}
        self._indexed: tuple[Array, Array] = (np.empty(0, np.int64), np.empty(0, np.int8))
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
        *,
        index: bool = True,
    ) -> None:
        """Add tasks, or give known tasks their image; an empty key means: image not embedded yet.

        ``index=False`` leaves the index alone: ``build_index`` follows.
        """
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
            self._embed(self.generation, block, [tasks[task] for task in block], features, place, index)

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
        self.targets = longer(self.targets, 0 if self.spec.multiple else -1)
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
        index: bool,
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
                self.probabilities[rows] = head.probabilities(vectors["head"], multiple=self.spec.multiple)
            if place is not None:
                self.clusters[rows], self.density[rows] = place.of(keys, raw)
            self.embedded[rows] = True
            if index:
                kept = {space: vectors[space] for space in self.searched & vectors.keys()}
                self.index.upsert(self.ids[rows], kept, self._index_states(rows))
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
                self.index.delete(gone)

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
        labels = tuple(label for label in labels if label in self.classes)
        self.states[row] = state
        self.version += 1
        self.answers[row] = self.answer_of(labels) if state is LabelState.LABELLED else -1
        if self.spec.multiple:
            self.targets[row] = 0
            self.targets[row, [self.classes[label] for label in labels]] = 1
        else:
            self.targets[row] = self.classes[labels[0]] if labels else -1
        if mark and self.embedded[row]:
            self.index.mark([task], LabelState(int(self._index_states(np.array([row]))[0])))

    def _index_states(self, rows: Array) -> Array:
        """States as the index sees them: an answer without a label propagates nothing, as if skipped."""
        states = self.states[rows].copy()
        if not self.spec.multiple:
            states[(states == LabelState.LABELLED) & (self.targets[rows] < 0)] = LabelState.SKIPPED
        return states

    def answer_of(self, labels: tuple[str, ...]) -> int:
        """A number for a set of labels: equal answers, equal numbers; -1 for none in a single choice."""
        if not labels and not self.spec.multiple:
            return -1
        key = tuple(sorted(labels)) if self.spec.multiple else labels[:1]
        return self.answer_ids.setdefault(key, len(self.answer_ids))

    def labels_of(self, row: int) -> tuple[str, ...]:
        """The labels of a labelled row."""
        if self.spec.multiple:
            return tuple(self.spec.classes[n] for n in np.flatnonzero(self.targets[row]))
        return (self.spec.classes[int(self.targets[row])],) if self.targets[row] >= 0 else ()

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
            for task in touched | set(self.of_task):
                self._resolve(task, mark=False)

    @property
    def searched(self) -> frozenset[str]:
        """The spaces that neighbours are looked for in."""
        return frozenset({"raw"}) if self.generation is None else self.generation.searched

    def build_index(self, also: frozenset[str] = frozenset()) -> None:
        """Build the index from the arrays; ``mark_changes`` follows once nobody writes to the old ones.

        ``also``: the spaces that another pool goes on searching until this one takes its place.
        """
        with self.lock:
            rows = np.flatnonzero(self.embedded & (self.states != GONE))
            there = {"raw": self.raw, "head": self.head}
            spaces = self.searched | also
            vectors = {
                space: found[rows] for space, found in there.items() if space in spaces and found is not None
            }
            states = self._index_states(rows)
        self.index.build(self.ids[rows], vectors, states)
        self._indexed = (rows, states)

    def mark_changes(self) -> None:
        """Tell the index which states changed since it was built."""
        rows, states = self._indexed
        now = self._index_states(rows)
        for state in LabelState:
            if len(changed := rows[(now != states) & (now == state)]):
                self.index.mark(self.ids[changed].tolist(), state)
