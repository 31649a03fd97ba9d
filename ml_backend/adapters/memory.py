"""Every port in memory, for simulations: the services run as in the product, only nobody is outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_backend.domain.audit_sample import AuditSample
from ml_backend.domain.errors import NotFound
from ml_backend.domain.events import Event
from ml_backend.domain.generation import Array, Generation, Projection
from ml_backend.domain.model import (
    MODEL_VERSION,
    Annotation,
    AnnotationId,
    ContentKey,
    PredictionId,
    PredictionRow,
    ProjectRef,
    TaskId,
)
from ml_backend.wire import place_of


class MemoryState:
    """``ports.State`` of one project, as far as a project in memory uses it."""

    def __init__(self, **options: str) -> None:
        self._options = dict(options)
        self._tasks: dict[TaskId, ContentKey] = {}
        self._annotations: dict[AnnotationId, Annotation] = {}
        self._window: dict[TaskId, tuple[PredictionId, float]] = {}
        self._front = self._back = 0

    def options(self, project: ProjectRef) -> dict[str, str]:
        return dict(self._options)

    def set_options(self, project: ProjectRef, **options: str) -> None:
        self._options |= options

    def tasks(self, project: ProjectRef, only: Sequence[TaskId] | None = None) -> dict[TaskId, ContentKey]:
        wanted = self._tasks if only is None else [task for task in only if task in self._tasks]
        return {task: self._tasks[task] for task in wanted}

    def set_tasks(self, project: ProjectRef, tasks: Mapping[TaskId, ContentKey]) -> None:
        self._tasks |= tasks

    def annotations(self, project: ProjectRef) -> list[Annotation]:
        return list(self._annotations.values())

    def set_annotations(self, project: ProjectRef, annotations: Iterable[Annotation]) -> None:
        self._annotations |= {annotation.id: annotation for annotation in annotations}

    def delete_annotations(self, project: ProjectRef, annotations: Iterable[AnnotationId]) -> None:
        for annotation in annotations:
            self._annotations.pop(annotation, None)

    def window(self, project: ProjectRef) -> dict[TaskId, tuple[PredictionId, float]]:
        return dict(self._window)

    def set_window(self, project: ProjectRef, rows: Mapping[TaskId, tuple[PredictionId, float]]) -> None:
        self._window |= rows

    def drop_window(self, project: ProjectRef, tasks: Iterable[TaskId]) -> None:
        for task in tasks:
            self._window.pop(task, None)

    def push_scores(self, project: ProjectRef, count: int) -> range:
        self._front -= count
        return range(self._front + count - 1, self._front - 1, -1)

    def append_scores(self, project: ProjectRef, count: int) -> range:
        self._back += count
        return range(self._back - count + 1, self._back + 1)

    def note_submit(self, project: ProjectRef) -> None: ...

    def publish(self, project: ProjectRef, event: Event) -> None: ...


class MemoryFeatures:
    """``ports.Features`` over an array (n, F); the key of row n is ``keys[n]``."""

    def __init__(self, keys: Sequence[ContentKey], features: Array) -> None:
        self.dim = features.shape[1]
        self._features = features
        self._rows = {key: row for row, key in enumerate(keys)}

    def __contains__(self, key: ContentKey) -> bool:
        return key in self._rows

    def missing(self, keys: Iterable[ContentKey]) -> list[ContentKey]:
        return [key for key in dict.fromkeys(keys) if key not in self._rows]

    def get(self, keys: Sequence[ContentKey]) -> Array:
        return self._features[[self._rows[key] for key in keys]]


class MemoryArtifacts:
    """``ports.Artifacts``: the current ones only."""

    def __init__(self) -> None:
        self._generation: Generation | None = None
        self._projection: Projection | None = None
        self._audit_samples: list[AuditSample] = []

    def generation(self, project: ProjectRef) -> Generation | None:
        return self._generation

    def publish_generation(self, project: ProjectRef, generation: Generation) -> None:
        self._generation = generation

    def generation_number(self, project: ProjectRef) -> int | None:
        return None if self._generation is None else self._generation.number

    def projection(self, project: ProjectRef) -> Projection | None:
        return self._projection

    def audit_sample(self, project: ProjectRef, number: int | None = None) -> AuditSample | None:
        found = (each for each in self._audit_samples[::-1] if number in (None, each.number))
        return next(found, None)

    def audit_sample_numbers(self, project: ProjectRef) -> list[int]:
        return sorted({each.number for each in self._audit_samples})

    def publish_audit_sample(self, project: ProjectRef, audit_sample: AuditSample) -> None:
        self._audit_samples.append(audit_sample)

    def publish_projection(self, project: ProjectRef, projection: Projection) -> None:
        self._projection = projection


class MemoryJobs:
    """``ports.Jobs`` that runs nothing: a simulation decides itself when it is time to learn."""

    def enqueue(self, job: str, project: ProjectRef, **arguments: Any) -> None: ...

    def waits(self, job: str, project: ProjectRef) -> bool:
        return False


class MemoryStudio:
    """Label Studio's side of the queue: of open, unlocked tasks it serves the one with the lowest score."""

    origin = "memory"

    def __init__(self) -> None:
        self.rows: dict[PredictionId, tuple[TaskId, float, list[dict[str, Any]]]] = {}
        self.closed: set[TaskId] = set()
        self.locks: dict[TaskId, int] = {}
        self._ids = 0

    def serve(self, user: int) -> TaskId | None:
        """The task that this user gets next, which stays theirs until it is closed."""
        mine = [task for task, owner in self.locks.items() if owner == user and task not in self.closed]
        waiting = (
            (score, task)
            for task, score, _ in self.rows.values()
            if task not in self.closed and task not in self.locks
        )
        task = mine[0] if mine else min(waiting, default=(0.0, None))[1]
        if task is not None:
            self.locks[task] = user
        return task

    def close_task(self, task: TaskId) -> None:
        """Somebody answered the task."""
        self.closed.add(task)
        self.locks.pop(task, None)

    def create_prediction(
        self, project: int, task: TaskId, score: float, result: list[dict[str, Any]]
    ) -> PredictionId:
        self._ids += 1
        self.rows[PredictionId(self._ids)] = (task, score, result)
        return PredictionId(self._ids)

    def update_prediction(self, prediction: PredictionId, score: float, result: list[dict[str, Any]]) -> None:
        if prediction not in self.rows:
            raise NotFound(f"There is no prediction {prediction}.")
        self.rows[prediction] = (self.rows[prediction][0], score, result)

    def delete_prediction(self, prediction: PredictionId) -> None:
        self.rows.pop(prediction, None)

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        for row in predictions:
            self.create_prediction(project, row["task"], place_of(row["score"]), row["result"])
        return len(predictions)

    def predictions(self, project: int, tasks: Sequence[TaskId] | None = None) -> list[PredictionRow]:
        return [
            PredictionRow(number, task, score, MODEL_VERSION)
            for number, (task, score, _) in self.rows.items()
            if tasks is None or task in tasks
        ]
