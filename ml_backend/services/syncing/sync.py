"""Rebuild the shared state from Label Studio, which holds the truth.

A three-way merge: what an event changed in our state while Label Studio was being read is newer than
what was read and stays; everything else takes Label Studio's word. A change that was undone again during
the read can't be told from none: the next sync heals it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ml_backend.controls import Control
from ml_backend.domain.content_hash import address_digest
from ml_backend.domain.errors import LabelStudioError
from ml_backend.domain.model import (
    MODEL_VERSION,
    Annotation,
    AnnotationId,
    ContentKey,
    PredictionId,
    PredictionRow,
    ProjectRef,
    Task,
    TaskId,
    TaskRecord,
)
from ml_backend.ports import Features, LabelStudio, State
from ml_backend.wire import content_key_of, image_of

FAILURES = 3
"""Surplus rows that Label Studio does not delete, after which it is left alone until the next sync."""

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")
Progress = Callable[[int], None]
Row = tuple[PredictionId, float]


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What our state holds now, and what had to be put right.

    ``changed`` counts the rows of our state that were wrong, ``deleted_predictions`` the surplus rows
    deleted in Label Studio; the images of ``to_embed`` have no features yet, or are at another address now.
    ``found`` are all tasks as Label Studio has them.
    """

    tasks: int
    annotations: int
    window: int
    changed: int
    deleted_predictions: int
    to_embed: tuple[Task, ...]
    found: tuple[Task, ...] = ()


class _Snapshot(NamedTuple):
    tasks: dict[TaskId, ContentKey]
    annotations: dict[AnnotationId, Annotation]
    window: dict[TaskId, Row]


def sync(
    ref: ProjectRef,
    studio: LabelStudio,
    state: State,
    control: Control,
    progress: Progress = lambda tasks: None,
    features: Features | None = None,
) -> SyncReport:
    """Make our state equal to Label Studio's; idempotent, and where reading fails nothing is changed.

    ``progress`` hears how many tasks were read so far. With ``features`` a task whose features are lost
    counts as not embedded.
    """
    before = _snapshot(ref, state)
    records: list[TaskRecord] = []
    for record in studio.records(ref.id, control):
        records.append(record)
        progress(len(records))
    after = _snapshot(ref, state)

    tasks = merge(before.tasks, _keys(control, records, after.tasks), after.tasks)
    made = {a.id: a for record in records for a in record.annotations if record.task.id in tasks}
    annotations = merge(before.annotations, made, after.annotations)
    labelled = {a.task for a in annotations.values() if not a.skipped}
    rows, surplus = _rows(records, before.window, after.window)
    window = merge(before.window, rows, after.window)
    window = {task: row for task, row in window.items() if task in tasks and task not in labelled}

    changed = (
        _differences(after.tasks, tasks)
        + _differences(after.annotations, annotations)
        + _differences(after.window, window)
    )
    state.set_tasks(ref, _changed(after.tasks, tasks))
    state.set_annotations(ref, _changed(after.annotations, annotations).values())
    state.set_window(ref, _changed(after.window, window))
    state.delete_annotations(ref, _gone(after.annotations, annotations))
    state.drop_window(ref, _gone(after.window, window))
    state.delete_tasks(ref, _gone(after.tasks, tasks))
    deleted = _delete(studio, surplus)
    moved = _moved(ref, state, control, records, tasks)
    lost = set(features.missing(key for key in tasks.values() if key)) if features is not None else set()
    to_embed = tuple(
        record.task
        for record in records
        if (key := tasks.get(record.task.id)) is not None
        and image_of(record.task, control)
        and (not key or key in lost or record.task.id in moved)
    )
    found = tuple(record.task for record in records)
    return SyncReport(len(tasks), len(annotations), len(window), changed, deleted, to_embed, found)


def _delete(studio: LabelStudio, surplus: Sequence[PredictionRow]) -> int:
    """Delete surplus rows; the next sync finds again what Label Studio did not delete."""
    failed = 0
    for number, row in enumerate(surplus):
        try:
            studio.delete_prediction(row.id)
        except LabelStudioError as error:
            failed += 1
            log.warning("The surplus prediction %s is left to the next sync: %s", row.id, error)
            if failed == FAILURES:
                return number + 1 - failed
    return len(surplus) - failed


def merge(before: Mapping[K, V], truth: Mapping[K, V], after: Mapping[K, V]) -> dict[K, V]:
    """What changed from ``before`` to ``after`` stays as it is in ``after``; the rest is as in ``truth``."""
    merged: dict[K, V] = {}
    for key in {**before, **after, **truth}:
        found = truth if before.get(key) == after.get(key) else after
        if key in found:
            merged[key] = found[key]
    return merged


def _snapshot(ref: ProjectRef, state: State) -> _Snapshot:
    annotations = {annotation.id: annotation for annotation in state.annotations(ref)}
    return _Snapshot(state.tasks(ref), annotations, state.window(ref))


def _keys(
    control: Control, records: Sequence[TaskRecord], known: Mapping[TaskId, ContentKey]
) -> dict[TaskId, ContentKey]:
    """Content keys: as we had them, else as imported."""
    none = ContentKey("")
    return {
        task.id: (known.get(task.id) or ContentKey(content_key_of(task)) if image_of(task, control) else none)
        for task in (record.task for record in records)
    }


def _moved(
    ref: ProjectRef,
    state: State,
    control: Control,
    records: Sequence[TaskRecord],
    keys: Mapping[TaskId, ContentKey],
) -> set[TaskId]:
    """Tasks whose image is at another address than the one that their key was read at.

    A key of which that isn't known (imported, or noted by an older version) counts as read where it is now.
    """
    noted = state.sources(ref)
    now = {
        record.task.id: address_digest(address)
        for record in records
        if keys.get(record.task.id) and (address := image_of(record.task, control))
    }
    state.set_sources(ref, {task: digest for task, digest in now.items() if task not in noted})
    return {task for task, digest in now.items() if noted.get(task, digest) != digest}


def _rows(
    records: Sequence[TaskRecord], before: Mapping[TaskId, Row], after: Mapping[TaskId, Row]
) -> tuple[dict[TaskId, Row], list[PredictionRow]]:
    """The queue row of each task, and the rows that are in its way.

    Label Studio serves a task by its lowest score, so that row counts and the others are surplus, as are
    rows without a score, which sort first or last depending on the database. Rows of a task whose place
    changed while Label Studio was read are left to the next sync.
    """
    kept: dict[TaskId, Row] = {}
    surplus: list[PredictionRow] = []
    for record in records:
        task = record.task.id
        ours = [row for row in record.predictions if row.model_version == MODEL_VERSION]
        scored = [(row.score, row.id) for row in ours if row.score is not None]
        if scored:
            score, number = min(scored)
            kept[task] = (number, score)
        if before.get(task) == after.get(task):
            surplus += [row for row in ours if task not in kept or row.id != kept[task][0]]
    return kept, surplus


def _changed(old: Mapping[K, V], new: Mapping[K, V]) -> dict[K, V]:
    return {key: value for key, value in new.items() if key not in old or old[key] != value}


def _gone(old: Mapping[K, V], new: Mapping[K, V]) -> list[K]:
    return [key for key in old if key not in new]


def _differences(old: Mapping[K, V], new: Mapping[K, V]) -> int:
    return len(_changed(old, new)) + len(_gone(old, new))
