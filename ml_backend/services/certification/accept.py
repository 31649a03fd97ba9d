"""Takes certified suggestions over into Label Studio, marked as made by a machine, and takes them back."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Sequence

from ml_backend.controls import Control
from ml_backend.domain.errors import NotFound
from ml_backend.domain.model import CERTIFIED_VERSION, ProjectRef, Suggestion, TaskId
from ml_backend.domain.provenance import mark
from ml_backend.ports import LabelStudio

Progress = Callable[[str, int, int], None]

CHUNK = 100
"""Rows per bulk request: on SQLite each one blocks submits while it is written."""


def _nothing(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


def accept_predictions(
    ref: ProjectRef,
    studio: LabelStudio,
    control: Control,
    suggestions: Sequence[tuple[TaskId, Suggestion]],
    certificate: str,
    progress: Progress = _nothing,
) -> int:
    """Write predictions of the certificate's own version, with the mark; returns how many were new.

    A task that has one keeps it: run again, or after an interruption, only what lacks is written. The queue
    never looks at that version.
    """
    version = f"{CERTIFIED_VERSION}-{certificate}"
    there = {row.task for row in studio.predictions(ref.id) if row.model_version == version}
    lacking = [(task, said) for task, said in suggestions if task not in there]
    for start in range(0, len(lacking), CHUNK):
        body = [
            {
                "task": task,
                "model_version": version,
                "score": min(max(said.confidence, 0.0), 1.0),
                "result": mark(control.write(said), certificate),
            }
            for task, said in lacking[start : start + CHUNK]
        ]
        studio.import_predictions(ref.id, body)
        progress("suggestions", start + len(body), len(lacking))
    return len(lacking)


def accept_annotations(
    ref: ProjectRef,
    studio: LabelStudio,
    tasks: Sequence[TaskId],
    certificate: str,
    progress: Progress = _nothing,
) -> int:
    """Make annotations of the certificate's predictions of these tasks; returns how many were made.

    They carry the mark, belong to the token's user and close their tasks. A task that anybody has answered or
    skipped by then is left alone; where a person answers in the very moment both stand, and the person's
    counts. Run again, only what lacks is made.
    """
    made = 0
    for start in range(0, len(tasks), CHUNK):
        some = tasks[start : start + CHUNK]
        lacking = _untouched(ref, studio, some)
        if lacking:
            body = {
                "selectedItems": {"all": False, "included": lacking},
                "ordering": [],
                "model_version": f"{CERTIFIED_VERSION}-{certificate}",
            }
            params = {"id": "predictions_to_annotations", "project": ref.id}
            studio.call("POST", "/api/dm/actions", params=params, json=body)
            made += len(lacking)
        progress("annotations", start + len(some), len(tasks))
    return made


def _untouched(ref: ProjectRef, studio: LabelStudio, tasks: Sequence[TaskId]) -> list[TaskId]:
    """Those of the tasks that have no annotation now, be it a skip."""
    params = {
        "project": ref.id,
        "page": 1,
        "page_size": len(tasks),
        "resolve_uri": "false",
        "query": json.dumps({"selectedItems": {"all": False, "included": list(tasks)}}),
    }
    found = studio.call("GET", "/api/tasks", params=params)["tasks"]
    return [
        TaskId(int(task["id"]))
        for task in found
        if not task.get("total_annotations") and not task.get("cancelled_annotations")
    ]


def revert(ref: ProjectRef, studio: LabelStudio, progress: Progress = _nothing) -> tuple[int, int]:
    """Delete every annotation that bears the mark and every certified prediction; returns how many of each.

    What a person has changed bears it no longer and stays. Only Label Studio is asked, so it works whatever
    was lost on our side; cut off and run again it goes on where it was.
    """
    made = [a.id for record in studio.records(ref.id) for a in record.annotations if a.machine]
    for number, annotation in enumerate(made, 1):
        with contextlib.suppress(NotFound):  # somebody else has deleted it meanwhile
            studio.call("DELETE", f"/api/annotations/{annotation}/")
        progress("annotations", number, len(made))
    versions = Counter(
        row.model_version
        for row in studio.predictions(ref.id)
        if row.model_version.startswith(f"{CERTIFIED_VERSION}-")
    )
    for version in versions:
        studio.call("DELETE", f"/api/projects/{ref.id}/model-versions/", json={"model_version": version})
    return len(made), versions.total()
