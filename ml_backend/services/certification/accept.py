"""Takes certified suggestions over into Label Studio, marked as made by a machine, and takes them back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ml_backend.controls import Control
from ml_backend.domain.errors import LabelStudioError, NotFound
from ml_backend.domain.model import CERTIFIED_VERSION, ProjectRef, Suggestion, TaskId
from ml_backend.domain.provenance import mark
from ml_backend.ports import LabelStudio

Progress = Callable[[str, int, int], None]

CHUNK = 100
"""Rows per bulk request: on SQLite each one blocks submits while it is written."""


TRIES = 3
"""Times that Label Studio is asked for what it lost."""


def _nothing(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True, slots=True)
class Written:
    """What came into Label Studio: ``new`` ones, those ``there`` before, and why others are missing."""

    new: int = 0
    there: int = 0
    missing: Mapping[TaskId, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reverted:
    """How many annotations and predictions were deleted, and a line for each that would not go."""

    annotations: int
    predictions: int
    kept: Sequence[str] = ()


def accept_predictions(
    ref: ProjectRef,
    studio: LabelStudio,
    control: Control,
    suggestions: Sequence[tuple[TaskId, Suggestion]],
    certificate: str,
    progress: Progress = _nothing,
) -> Written:
    """Write predictions of the certificate's own version, with the mark, and read back which came in.

    A task that has one keeps it: run again, or after an interruption, only what lacks is written. What Label
    Studio leaves out without a word is tried again as long as that helps. The queue never looks at that
    version.
    """
    version = f"{CERTIFIED_VERSION}-{certificate}"
    missing: dict[TaskId, str] = {}
    fitting: dict[TaskId, Suggestion] = {}
    there = _holding(ref, studio, version)
    for task, said in suggestions:
        gone = [label for label in said.labels if label not in control.columns]
        if gone and task not in there:
            missing[task] = f"the label config has no {', '.join(map(repr, gone))} any more"
        else:
            fitting[task] = said
    before = len(fitting.keys() & there)
    for _ in range(TRIES):
        lacking = [task for task in fitting if task not in there]
        if not lacking:
            break
        for start in range(0, len(lacking), CHUNK):
            body = [
                {
                    "task": task,
                    "model_version": version,
                    "score": min(max(fitting[task].confidence, 0.0), 1.0),
                    "result": mark(control.write(fitting[task]), certificate),
                }
                for task in lacking[start : start + CHUNK]
            ]
            studio.import_predictions(ref.id, body)
            progress("suggestions", start + len(body), len(lacking))
        known, there = there, _holding(ref, studio, version)
        if there == known:
            break
    missing |= {task: "Label Studio left it out" for task in fitting if task not in there}
    return Written(len(fitting.keys() & there) - before, before, missing)


def _holding(ref: ProjectRef, studio: LabelStudio, version: str) -> set[TaskId]:
    """The tasks that have a prediction of that version."""
    return {row.task for row in studio.predictions(ref.id) if row.model_version == version}


def accept_annotations(
    ref: ProjectRef,
    studio: LabelStudio,
    tasks: Sequence[TaskId],
    certificate: str,
    progress: Progress = _nothing,
) -> Written:
    """Make annotations of the certificate's predictions of these tasks, and read back which came in.

    They carry the mark, belong to the token's user and close their tasks. A task that anybody has answered or
    skipped by then is left alone; where a person answers in the very moment both stand, and the person's
    counts. Run again, only what lacks is made.
    """
    new, missing = 0, dict[TaskId, str]()
    for start in range(0, len(tasks), CHUNK):
        some = tasks[start : start + CHUNK]
        lacking = wanted = _untouched(ref, studio, some)
        for _ in range(TRIES):  # Label Studio now and then makes none while others submit
            if not lacking:
                break
            body = {
                "selectedItems": {"all": False, "included": lacking},
                "ordering": [],
                "model_version": f"{CERTIFIED_VERSION}-{certificate}",
            }
            params = {"id": "predictions_to_annotations", "project": ref.id}
            studio.call("POST", "/api/dm/actions", params=params, json=body)
            lacking = _untouched(ref, studio, lacking)
        new += len(wanted) - len(lacking)
        missing |= dict.fromkeys(lacking, "Label Studio made no annotation of its prediction")
        progress("annotations", start + len(some), len(tasks))
    return Written(new, len(tasks) - new - len(missing), missing)


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


def revert(ref: ProjectRef, studio: LabelStudio, progress: Progress = _nothing) -> Reverted:
    """Delete every annotation that bears the mark and every certified prediction, and read back what is left.

    What a person has changed bears it no longer and stays. Only Label Studio is asked, so it works whatever
    was lost on our side; cut off and run again it goes on where it was.
    """
    made = [a.id for record in studio.records(ref.id) for a in record.annotations if a.machine]
    kept: list[str] = []
    gone = 0
    for number, annotation in enumerate(made, 1):
        try:
            studio.call("DELETE", f"/api/annotations/{annotation}/")
            gone += 1
        except NotFound:
            pass  # somebody else has deleted it meanwhile
        except LabelStudioError as error:
            kept.append(f"annotation {annotation}: {error.message}")
        progress("annotations", number, len(made))
    before = _certified(ref, studio)
    for version in before:
        studio.call("DELETE", f"/api/projects/{ref.id}/model-versions/", json={"model_version": version})
    after = _certified(ref, studio)
    kept += [f"{count} predictions of {version}" for version, count in after.items()]
    return Reverted(gone, before.total() - after.total(), kept)


def _certified(ref: ProjectRef, studio: LabelStudio) -> Counter[str]:
    """How many predictions each certificate has."""
    versions = (row.model_version for row in studio.predictions(ref.id))
    return Counter(each for each in versions if each.startswith(f"{CERTIFIED_VERSION}-"))
