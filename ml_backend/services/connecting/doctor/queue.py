"""The order in which Label Studio serves tasks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from ml_backend.domain.model import MODEL_VERSION, RECOUNT_FLAG
from ml_backend.services.connecting import hotkeys
from ml_backend.services.connecting.doctor.context import CannotCheckError, CheckContext, Fault
from ml_backend.services.connecting.label_studio_setup import ask_next

RECOUNT_SECONDS = 0.6
"""An empty bulk request takes a tenth of that where nothing is recounted."""


def window(context: CheckContext) -> Iterator[Fault]:
    """Some tasks that are to be labelled hold a prediction: they are the queue."""
    left = (context.project["task_number"] or 0) - (context.project["finished_task_number"] or 0)
    if left > 0 and not context.waiting:
        yield Fault(
            "The queue is empty, so Label Studio serves tasks at random.",
            f"{left} tasks to label, none with a prediction of version {MODEL_VERSION!r}",
            f"See that backend and worker run (rush start), then: rush sync --project {context.ref.id}",
        )


def in_step(context: CheckContext) -> Iterator[Fault]:
    """What Rush believes to be the front is the front."""
    mine = context.state.window(context.ref)
    scores = {row.task: row.score for row in reversed(context.waiting)}
    wrong = [task for task, (_, score) in mine.items() if task in scores and scores[task] != score]
    unknown = [task for task in scores if task not in mine]
    if wrong or unknown:
        yield Fault(
            "Rush's idea of the queue differs from Label Studio's.",
            f"{len(wrong)} other scores, {len(unknown)} predictions unknown to Rush",
            f"Run: rush sync --project {context.ref.id}",
            warning=True,
        )


def single_rows(context: CheckContext) -> Iterator[Fault]:
    """One prediction per task: with several the lowest score wins, whatever Rush wrote last."""
    counts = Counter(row.task for row in context.predictions if row.model_version == MODEL_VERSION)
    several = sorted(task for task, count in counts.items() if count > 1)
    if several:
        shown = ", ".join(map(str, several[:5])) + (", …" if len(several) > 5 else "")
        fix = f"Run: rush sync --project {context.ref.id} (or delete the extra rows in the Data Manager)"
        yield Fault("Tasks have several predictions of Rush.", f"{len(several)} tasks: {shown}", fix)


def scores(context: CheckContext) -> Iterator[Fault]:
    """Every prediction has a score: an empty one sorts first on SQLite and last on PostgreSQL."""
    empty = [
        row.task for row in context.predictions if row.model_version == MODEL_VERSION and row.score is None
    ]
    if empty:
        fix = f"Run: rush sync --project {context.ref.id}"
        yield Fault("Predictions without a score spoil the order.", f"tasks {empty[:5]}", fix)


def clusters(context: CheckContext) -> Iterator[Fault]:
    """No prediction names a cluster: Label Studio would serve the least labelled cluster first."""
    rows = [row for row in context.raw_predictions if row.get("cluster") is not None]
    if rows:
        yield Fault(
            "Predictions with a cluster are ordered by cluster before their score.",
            f"{len(rows)} predictions, the first is {rows[0]['id']}",
            "Delete these predictions in the Data Manager (Actions → Delete Predictions), then: "
            f"rush sync --project {context.ref.id}",
        )


def next_task(context: CheckContext) -> Iterator[Fault]:
    """Asked for the next task, Label Studio serves the front of the queue. What it serves is handed back."""
    if not context.ask:
        raise CannotCheckError("asking for the next task was switched off")
    if not context.waiting:
        raise CannotCheckError("the queue is empty")
    served = ask_next(context.studio, context.state, context.ref)
    if served is None:
        raise CannotCheckError("no task is left to label")
    if served.held:
        raise CannotCheckError(f"task {served.task} is open in the browser of the token's user")
    # Everybody else may hold one task of the front, and nobody can see which.
    others = len(context.studio.call("GET", "/api/users/") or ()) - 1
    if served.place is None or served.place > others:
        place = (
            "not in the queue" if served.place is None else f"number {served.place + 1} of {served.waiting}"
        )
        yield Fault(
            "Label Studio does not serve the front of the queue.",
            f"task {served.task}, {place}",
            "If every other check passes, the project has ProjectMember rows (left by other editions or "
            "scripts), which make the order random. On Label Studio's machine run `label-studio shell`: "
            "from projects.models import ProjectMember; "
            f"ProjectMember.objects.filter(project_id={context.ref.id}).delete()",
        )


def recount(context: CheckContext) -> Iterator[Fault]:
    """A bulk request for predictions doesn't take the longer the larger the project is.

    An empty one is sent, which leaves nothing behind: Label Studio recounts the project all the same.
    """
    began = time.monotonic()
    path = f"/api/projects/{context.ref.id}/import/predictions"
    context.studio.call("POST", path, json=[], timeout=60.0)
    seconds = time.monotonic() - began
    if seconds > RECOUNT_SECONDS:
        yield Fault(
            "Label Studio recounts the whole project for each bulk request, and submits wait for that.",
            f"{seconds:.1f} s for an empty one, {context.project['task_number']} tasks",
            f"Restart Label Studio with {RECOUNT_FLAG}=true in its environment.",
            warning=True,
        )


def accept_key(context: CheckContext) -> Iterator[Fault]:
    """One key accepts the suggestion."""
    if hotkeys.accept_key(context.studio) is None:
        yield Fault("Accepting a suggestion takes two keys.", hotkeys.DEFAULT, context.connect, warning=True)
