"""Label Studio's REST API, as measured on 1.23.2."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_backend.adapters.label_studio.images import ImageSource
from ml_backend.adapters.label_studio.transport import Transport
from ml_backend.controls import Control
from ml_backend.domain.errors import BadRequest, LabelStudioError, NotFound
from ml_backend.domain.model import (
    MODEL_VERSION,
    Annotation,
    PredictionId,
    PredictionRow,
    Task,
    TaskId,
    TaskRecord,
)
from ml_backend.wire import annotation, place_of, score_of

log = logging.getLogger(__name__)

PAGE = 500
BULK_TIMEOUT = 600.0
"""Seconds for one import request: Label Studio answers when all of it is stored."""

# Label Studio applies this list to the nested annotations as well, so it names their fields, too.
# Naming fields makes the request three times faster: 10,000 tasks take 6 s instead of 20.
_FIELDS = (
    "id,data,meta,annotations,task,completed_by,result,was_cancelled,lead_time,created_at,parent_prediction"
)


class HttpLabelStudio:
    """The LabelStudio port over HTTP; one connection pool, safe for many threads.

    ``token`` is a legacy token or a personal access token. ``prediction_timeout`` bounds creating and
    updating one prediction, retries included: the web process sets it below Label Studio's one second for
    webhooks. Every failure is a LabelStudioError, NotFound or Unauthorized with status, address and Label
    Studio's own words.
    """

    def __init__(
        self,
        origin: str,
        token: str,
        *,
        allowed_hosts: str = "",
        file_roots: str = "",
        max_image_bytes: int = 50_000_000,
        timeout: float = 10.0,
        prediction_timeout: float | None = None,
    ) -> None:
        self._http = Transport(origin, token, timeout)
        self._prediction_timeout = prediction_timeout or timeout
        hosts, roots = _listed(allowed_hosts), [Path(root) for root in _listed(file_roots)]
        self._images = ImageSource(self._http, hosts, roots, max_image_bytes)
        self.origin = self._http.origin

    def project(self, project: int) -> dict[str, Any]:
        """The project's JSON; NotFound if there is none."""
        return _object(self._http.request("GET", f"/api/projects/{project}/"))

    def update_project(self, project: int, **fields: Any) -> dict[str, Any]:
        """One PATCH; the project's JSON after it."""
        return _object(self._http.request("PATCH", f"/api/projects/{project}/", json=fields))

    def records(self, project: int, control: Control | None = None) -> Iterator[TaskRecord]:
        """Every task with its annotations (skipped ones too) and predictions, by id, streamed page by page.

        Pages continue behind the last id that was seen, so tasks deleted meanwhile shift nothing.
        """
        self.project(project)
        rows: dict[TaskId, list[PredictionRow]] = {}
        for row in self.predictions(project):
            rows.setdefault(row.task, []).append(row)
        last = 0
        while page := self._page(project, last):
            before = last
            for task in page:
                if not isinstance(_mapping(task).get("id"), int):
                    log.warning("project %s: a task is left out, it has no id: %.80r", project, task)
                    continue
                last = task["id"]
                record = Task(TaskId(last), _mapping(task.get("data")), _mapping(task.get("meta")))
                mine = tuple(_annotations(last, task.get("annotations"), control))
                yield TaskRecord(record, mine, tuple(rows.get(record.id, ())))
            if len(page) < PAGE or last == before:
                return

    def _page(self, project: int, after: int) -> list[dict[str, Any]]:
        newer = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": after}
        query = {"filters": {"conjunction": "and", "items": [newer]}, "ordering": ["tasks:id"]}
        params = {
            "project": project,
            "fields": "all",
            "include": _FIELDS,
            "page_size": PAGE,
            "resolve_uri": "false",
            "query": json.dumps(query),
        }
        try:
            reply = self._http.request("GET", "/api/tasks/", params=params, timeout=BULK_TIMEOUT)
        except LabelStudioError:
            # Label Studio answers 500 when one of the page's tasks is deleted while it builds the page.
            reply = self._http.request("GET", "/api/tasks/", params=params, timeout=BULK_TIMEOUT)
        return list(_object(reply).get("tasks") or ())

    def import_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[TaskId]:
        """Import tasks in one request; returns their ids in the order of ``tasks``."""
        if not tasks:
            return []
        path = f"/api/projects/{project}/import"
        body = [dict(task) for task in tasks]
        params = {"return_task_ids": "true"}
        reply = _object(self._http.request("POST", path, params=params, json=body, timeout=BULK_TIMEOUT))
        ids = reply.get("task_ids")
        if not isinstance(ids, list) or len(ids) != len(tasks):
            raise LabelStudioError(
                f"Label Studio imported {reply.get('task_count')} of {len(tasks)} tasks and named no ids.",
                "Run rush sync: what was imported is found there.",
            )
        return [TaskId(task) for task in ids]

    def create_prediction(
        self, project: int, task: TaskId, score: float, result: list[dict[str, Any]]
    ) -> PredictionId:
        """Create the task's prediction at this place in the queue; NotFound if the task is gone."""
        body = {
            "project": project,
            "task": task,
            "score": score_of(score),
            "result": result,
            "model_version": MODEL_VERSION,
        }
        try:
            reply = self._http.request(
                "POST", "/api/predictions/", json=body, timeout=self._prediction_timeout
            )
        except LabelStudioError as error:
            if "object does not exist" in error.message:
                raise NotFound(error.message, "The task was deleted meanwhile.") from None
            raise
        return PredictionId(_object(reply)["id"])

    def update_prediction(self, prediction: PredictionId, score: float, result: list[dict[str, Any]]) -> None:
        """One PATCH of place in the queue and result together; NotFound if the prediction is gone."""
        path = f"/api/predictions/{prediction}/"
        body = {"score": score_of(score), "result": result}
        self._http.request("PATCH", path, json=body, timeout=self._prediction_timeout)

    def delete_prediction(self, prediction: PredictionId) -> None:
        """Idempotent: a prediction that is gone already is fine."""
        try:
            self._http.request("DELETE", f"/api/predictions/{prediction}/")
        except NotFound:
            return

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        """Append many predictions in one request; returns how many were created.

        Each is ``{"task": id}`` with what ``wire.prediction`` gives. Label Studio leaves out, without a word,
        what doesn't fit the label config or has a score outside of [0, 1].
        """
        if not predictions:
            return 0
        path = f"/api/projects/{project}/import/predictions"
        body = [dict(prediction) for prediction in predictions]
        return int(_object(self._http.request("POST", path, json=body, timeout=BULK_TIMEOUT))["created"])

    def predictions(self, project: int, tasks: Sequence[TaskId] | None = None) -> list[PredictionRow]:
        """Prediction rows of the project, of these tasks only where given.

        One request, or one for each of two tasks: Label Studio doesn't page this list, 500 rows take 40 ms.
        """
        if tasks is not None and len(tasks) <= 2:
            pages = [{"task": int(task)} for task in dict.fromkeys(tasks)]
        else:
            pages = [{"project": project}]
        wanted = None if tasks is None else frozenset(tasks)
        rows: list[PredictionRow] = []
        for params in pages:
            for row in self._prediction_page(params):
                found = _row(row) if _mapping(row).get("project") == project else None
                if found is not None and (wanted is None or found.task in wanted):
                    rows.append(found)
        return rows

    def _prediction_page(self, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        try:
            reply = self._http.request("GET", "/api/predictions/", params=params, timeout=BULK_TIMEOUT)
        except LabelStudioError as error:
            if "Select a valid choice" in error.message:  # the task or project is gone
                return []
            raise
        return list(reply if isinstance(reply, list) else reply["results"])

    def update_task(
        self, task: TaskId, *, meta: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        """One PATCH; what is given replaces the stored value whole. NotFound if the task is gone."""
        given = {"meta": meta, "data": data}
        body = {name: dict(value) for name, value in given.items() if value is not None}
        if body:
            self._http.request("PATCH", f"/api/tasks/{task}/", json=body)

    def next_task(self, project: int) -> TaskId | None:
        """The task that Label Studio would serve now to the token's user.

        Asking locks the task for that user (24 h): it is served to this user first from then on, and to
        nobody else where ``maximum_annotations`` is 1. Only that user's submit or skip releases the lock
        (deleting the annotation afterwards doesn't bring it back); no other API call does.
        """
        self.project(project)  # a missing project answers 404, too
        try:
            return TaskId(_object(self._http.request("GET", f"/api/projects/{project}/next"))["id"])
        except NotFound:
            return None

    def download(self, url: str, project: int | None = None) -> bytes:
        """The bytes behind a task's image value; BadImage if refused, too large or not there.

        ``project`` is needed for cloud storage addresses (s3://…), which Label Studio resolves per project.
        """
        return self._images.read(url, project)

    def call(self, method: str, path: str, **request: Any) -> Any:
        """Any other request (``json=``, ``params=``, ``files=``, ``timeout=``), its JSON answer."""
        return self._http.request(method.upper(), path, **request)

    def close(self) -> None:
        """Close every connection."""
        self._http.close()


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _mapping(value: Any) -> Mapping[str, Any]:
    """The object, or an empty one in the place of what somebody else's program put there."""
    return value if isinstance(value, Mapping) else {}


def _annotations(task: int, given: Any, control: Control | None) -> Iterator[Annotation]:
    """The annotations that can be read; the others cost nothing but themselves."""
    for each in given if isinstance(given, Sequence) and not isinstance(given, str) else ():
        try:
            yield annotation({"task": task, **each} if isinstance(each, Mapping) else each, control)
        except BadRequest as error:
            log.warning("task %s: an annotation is left out: %s", task, error)


def _row(row: Any) -> PredictionRow | None:
    """The prediction row; None for one that can't be read."""
    try:
        score = None if row["score"] is None else place_of(row["score"])
        return PredictionRow(PredictionId(row["id"]), TaskId(row["task"]), score, row["model_version"] or "")
    except (KeyError, TypeError, ValueError) as error:
        log.warning("A prediction is left out: %s: %s", type(error).__name__, error)
        return None


def _object(reply: Any) -> dict[str, Any]:
    if not isinstance(reply, dict):
        raise LabelStudioError(
            f"Label Studio answered with {type(reply).__name__}, not an object.", "Is this Label Studio 1.23?"
        )
    return reply
