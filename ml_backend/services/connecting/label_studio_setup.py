"""What a Label Studio project must look like for Rush, and how to probe it; shared by connect and doctor."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ml_backend.domain.errors import LabelStudioError, NotFound
from ml_backend.domain.model import MODEL_VERSION, PredictionRow, ProjectRef, TaskId
from ml_backend.ports import LabelStudio, State
from ml_backend.settings import Settings

SAMPLING = "Uncertainty sampling"
WANTED: Mapping[str, Any] = {"sampling": SAMPLING, "maximum_annotations": 1, "show_collab_predictions": True}
"""Settings without which the queue isn't served in order; ``model_version`` is set after the backend."""

ACTIONS = frozenset(
    {
        "ANNOTATION_CREATED",
        "ANNOTATIONS_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_DELETED",
        "TASKS_CREATED",
        "TASKS_DELETED",
        "PROJECT_UPDATED",
    }
)
"""Webhook actions that Rush needs."""

SECRET_HEADER = "X-Rush-Secret"  # noqa: S105
WEBHOOK_SECONDS = 5.0
"""How long a provoked event may take: Label Studio itself gives up after one second."""

Switch = Literal["SSRF_PROTECTION_ENABLED", "ML_BLOCK_LOCAL_IP"]


def webhook_url(backend_url: str) -> str:
    """The address that Label Studio derives from a backend's when it makes the webhook itself."""
    return backend_url.rstrip("/") + "/webhook"


def backends(studio: LabelStudio, project: int) -> list[dict[str, Any]]:
    """The project's ML backend rows; asking makes Label Studio call each backend and renew its state."""
    return list(studio.call("GET", "/api/ml/", params={"project": project}) or ())


def webhooks(studio: LabelStudio, project: int) -> list[dict[str, Any]]:
    """The project's own webhooks."""
    rows = studio.call("GET", "/api/webhooks/", params={"project": project}) or ()
    return [row for row in rows if row.get("project") == project]


def backend_body(settings: Settings, project: int) -> dict[str, Any]:
    """The ML backend row as it must be; whole, because a PATCH is validated without the stored rest."""
    body: dict[str, Any] = {
        "project": project,
        "title": MODEL_VERSION,
        "url": settings.backend_url,
        "is_interactive": False,
        "auth_method": "NONE",
        "basic_auth_user": "",
    }
    if settings.basic_auth_user:
        body["auth_method"] = "BASIC_AUTH"
        body["basic_auth_user"] = settings.basic_auth_user
        body["basic_auth_pass"] = settings.basic_auth_password.get_secret_value()
    return body


def webhook_headers(settings: Settings) -> dict[str, str]:
    """The headers that prove to the backend that an event comes from Label Studio.

    Label Studio sends a backend's user and password with its questions but not with its webhooks.
    """
    if secret := settings.webhook_secret.get_secret_value():
        return {SECRET_HEADER: secret}
    if settings.basic_auth_user:
        return {"Authorization": basic_auth(settings)}
    return {}


def basic_auth(settings: Settings) -> str:
    """The Authorization header of RUSH_BASIC_AUTH_USER and RUSH_BASIC_AUTH_PASSWORD."""
    word = f"{settings.basic_auth_user}:{settings.basic_auth_password.get_secret_value()}"
    return "Basic " + base64.b64encode(word.encode()).decode()


def webhook_faults(hook: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The fields of a webhook row that must change, with their right values; empty where it is right."""
    change: dict[str, Any] = {}
    if not hook["is_active"]:
        change["is_active"] = True
    if not hook["send_payload"]:
        change["send_payload"] = True
    if not hook["send_for_all_actions"] and ACTIONS - set(hook["actions"]):
        change["send_for_all_actions"] = True
    headers = dict(hook["headers"] or {})
    wanted = headers | webhook_headers(settings)
    if headers != wanted:
        change["headers"] = wanted
    return change


def blocks(studio: LabelStudio, switch: Switch, url: str) -> bool:
    """Whether this Label Studio refuses the address because of that switch; changes nothing.

    Label Studio judges the address before it notices that there is no project 0.
    """
    path = "/api/ml/" if switch == "ML_BLOCK_LOCAL_IP" else "/api/webhooks/"
    try:
        studio.call("POST", path, json={"project": 0, "url": url})
    except LabelStudioError as error:
        if "reserved network address" in error.message:
            return True
        if "resolve hostname" in error.message:
            raise LabelStudioError(
                f"Label Studio can't resolve the backend's address {url}.",
                "Set RUSH_PUBLIC_URL to the backend's address as seen from Label Studio.",
            ) from None
    return False


def event_arrives(
    studio: LabelStudio, state: State, ref: ProjectRef, seconds: float = WEBHOOK_SECONDS
) -> bool:
    """Provoke a webhook event that changes nothing, and see whether the backend notes it."""
    before = state.options(ref).get("webhook_seen")
    same = studio.project(ref.id).get("description") or ""
    studio.update_project(ref.id, description=same)
    deadline = time.monotonic() + seconds
    while state.options(ref).get("webhook_seen") == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass(frozen=True, slots=True)
class Served:
    """What Label Studio served when asked for the next task; ``place`` in our order, 0 is the first."""

    task: TaskId
    place: int | None
    held: bool
    """The user had opened it before and not submitted it: it comes first whatever the order."""
    waiting: int


def open_rows(state: State, ref: ProjectRef, rows: list[PredictionRow]) -> list[PredictionRow]:
    """Prediction rows of our version whose task is still to be labelled, in the order of the queue."""
    labelled = {annotation.task for annotation in state.annotations(ref)}
    waiting = [
        row
        for row in rows
        if row.model_version == MODEL_VERSION and row.score is not None and row.task not in labelled
    ]
    return sorted(waiting, key=lambda row: (row.score, row.id))


def ask_next(studio: LabelStudio, state: State, ref: ProjectRef) -> Served | None:
    """Ask for the next task as the token's user, compare, and hand the task back; None where none is left."""
    waiting = open_rows(state, ref, studio.predictions(ref.id))
    try:
        answer = studio.call("GET", f"/api/projects/{ref.id}/next")
    except NotFound:
        return None
    task, held = TaskId(answer["id"]), "Task lock" in answer.get("queue", "")
    if not held:
        hand_back(studio, task)
    order = list(dict.fromkeys(row.task for row in waiting))
    place = order.index(task) if task in order else None
    return Served(task, place, held, len(order))


def hand_back(studio: LabelStudio, task: TaskId) -> None:
    """Undo that a task was taken: else it is kept for the token's user, and from everybody else, for a day.

    Label Studio frees a task only when its user submits or skips it, so it is skipped and the skip deleted.
    """
    try:
        skip = studio.call(
            "POST", f"/api/tasks/{task}/annotations/", json={"result": [], "was_cancelled": True}
        )
    except LabelStudioError as error:
        raise LabelStudioError(
            f"Task {task} was served to the token's user and can't be handed back: {error.message}",
            "It stays with that user for a day, unless they submit or skip it.",
        ) from None
    studio.call("DELETE", f"/api/annotations/{skip['id']}/")
