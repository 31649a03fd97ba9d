"""Write the map's coordinates to the tasks in Label Studio: one slow request a task, so only what moved.

One writer at a time, and people come first: while somebody submits it waits. Label Studio replaces a task's
``meta`` and ``data`` as a whole, so each task is read again right before it is written: what others put there
is lost only if they write between these two requests.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ml_backend.domain.errors import LabelStudioError, NotFound
from ml_backend.domain.generation import Projection
from ml_backend.domain.model import ContentKey, PredictionId, ProjectRef, TaskId
from ml_backend.ports import LabelStudio, State
from ml_backend.wire import coordinates

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Place = dict[str, Any]

MOVED = 0.01
"""Share of the map's width that a task must have moved to be written again."""
QUIET_SECONDS = 3.0
"""Seconds without a submit after which writing goes on."""
PAUSE = 0.25
AT_HAND = 16
"""Tasks in front of the queue that are written last."""
READ = 20
"""Tasks read in one request to learn which of them are to be written."""
FAILURES = 3
"""Tasks in a row that Label Studio doesn't take, after which it is asked whether it answers at all."""


def write_back(
    ref: ProjectRef,
    studio: LabelStudio,
    state: State,
    keys_of_tasks: Mapping[TaskId, ContentKey],
    projection: Projection,
    order: Sequence[TaskId],
    as_data: bool = False,
    progress: Progress = lambda done, total: None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Write ``meta.rush`` of the tasks in ``order`` that moved by more than MOVED or changed cluster.

    With ``as_data`` also the columns rush_x, rush_y and rush_cluster; all else in meta and data stays.
    Returns how many tasks were written. A run that is cut off goes on where it was, tasks that are gone
    are skipped. ``progress`` hears (tasks done, tasks that moved).
    """
    places = _places(keys_of_tasks, projection, order)
    written = state.written(ref)
    moved = [task for task, place in places.items() if not _stands(_noted(written.get(task)), place, as_data)]
    count = failures = 0
    for start in range(0, len(moved), READ):
        some = moved[start : start + READ]
        _let_people_go_first(ref, state, sleep)
        found = _read(ref, studio, some)
        for number, task in enumerate(some, start + 1):
            if task in found:
                _let_people_go_first(ref, state, sleep)
                try:
                    count += _bring(ref, studio, state, found[task], places[task], as_data)
                    failures = 0
                except LabelStudioError as error:
                    log.warning("project %s, task %s: not written: %s", ref.id, task, error)
                    failures += 1
                    if failures % FAILURES == 0:
                        studio.project(ref.id)  # raises where it is Label Studio that fails, not these tasks
            progress(number, len(moved))
    return count


def _bring(
    ref: ProjectRef, studio: LabelStudio, state: State, found: Mapping[str, Any], place: Place, as_data: bool
) -> bool:
    """Write the task's place unless it stands there, or the task is gone; note what stands there then."""
    task = TaskId(int(found["id"]))
    if not _stands(there := _there(found), place, as_data):  # else an import has put it there
        fresh = _read(ref, studio, [task]).get(task)
        if fresh is None:
            return False
        there = _there(fresh)
        if not _stands(there, place, as_data):
            if not _write(studio, task, fresh, place, as_data):
                return False
            state.set_written(ref, {task: json.dumps({**place, "data": as_data})})
            return True
    state.set_written(ref, {task: json.dumps(there)})
    return False


def order_of(
    tasks: Collection[TaskId],
    window: Mapping[TaskId, tuple[PredictionId, float]],
    answered: Collection[TaskId],
) -> list[TaskId]:
    """Open tasks in the queue first, in its order, then all others; the queue's front comes last.

    While a task is written Label Studio on PostgreSQL passes over it (SELECT ... SKIP LOCKED), so what is
    about to be served is left alone for as long as there are others.
    """
    queued = {task: window[task][1] for task in tasks if task in window and task not in answered}
    queue = sorted(queued, key=lambda task: (queued[task], task))
    return [*queue[AT_HAND:], *sorted(task for task in tasks if task not in queued), *queue[:AT_HAND]]


def _places(
    keys: Mapping[TaskId, ContentKey], projection: Projection, order: Sequence[TaskId]
) -> dict[TaskId, Place]:
    """``meta.rush`` of each task that is on the map, in that order."""
    row_of = {str(key): row for row, key in enumerate(projection.keys)}
    places: dict[TaskId, Place] = {}
    for task in order:
        key = keys.get(task, "")
        row = row_of.get(key)
        if row is not None and all(map(math.isfinite, projection.xy[row])):
            x, y = (float(value) for value in projection.xy[row])
            places[task] = coordinates(x, y, int(projection.cluster[row]), projection.generation, key)
    return places


def _noted(text: str | None) -> Place:
    return dict(json.loads(text)) if text else {}


def _stands(old: Mapping[str, Any], place: Place, as_data: bool) -> bool:
    """Whether what was written is still good enough."""
    if as_data and not old.get("data"):
        return False
    if any(old.get(name) != place[name] for name in ("cluster", "key")):
        return False
    try:
        return math.hypot(old["x"] - place["x"], old["y"] - place["y"]) <= MOVED
    except (KeyError, TypeError):
        return False


def _let_people_go_first(ref: ProjectRef, state: State, sleep: Callable[[float], None]) -> None:
    while state.seconds_since_submit(ref) < QUIET_SECONDS:
        sleep(PAUSE)


def _read(ref: ProjectRef, studio: LabelStudio, tasks: Sequence[TaskId]) -> dict[TaskId, Mapping[str, Any]]:
    """These tasks as they are now; without the ones that are gone.

    Not GET /api/tasks/ID: that asks the backend for a prediction where the task has none, and stores it.
    ``resolve_uri`` off: else image addresses come rewritten, and would be written back so.
    """
    selection = {"selectedItems": {"all": False, "included": list(tasks)}}
    params = {
        "project": ref.id,
        "page": 1,
        "page_size": len(tasks),
        "include": "id,data,meta",
        "resolve_uri": "false",
        "query": json.dumps(selection),
    }
    answer = studio.call("GET", "/api/tasks", params=params)
    rows = answer.get("tasks") if isinstance(answer, Mapping) else None
    found = [task for task in rows or () if isinstance(task, Mapping) and isinstance(task.get("id"), int)]
    return {TaskId(task["id"]): task for task in found}


def _columns(place: Mapping[str, Any]) -> dict[str, Any]:
    return {f"rush_{name}": place.get(name) for name in ("x", "y", "cluster")}


def _there(task: Mapping[str, Any]) -> Place:
    """Where the task's meta says that it is, and whether its columns say the same."""
    meta, data = task.get("meta"), task.get("data")
    rush = meta.get("rush") if isinstance(meta, Mapping) else None
    if not isinstance(rush, Mapping) or not isinstance(data, Mapping):
        return {}
    return {**rush, "data": all(data.get(name) == value for name, value in _columns(rush).items())}


def _write(studio: LabelStudio, task: TaskId, found: Mapping[str, Any], place: Place, as_data: bool) -> bool:
    """One PATCH; False where the task is gone by now."""
    meta, data = found.get("meta") or {}, found.get("data") or {}
    if not isinstance(meta, Mapping) or not isinstance(data, Mapping):
        log.warning("task %s: its meta is no object, and is left as it is.", task)
        return False
    try:
        studio.update_task(
            task, meta={**meta, "rush": place}, data={**data, **_columns(place)} if as_data else None
        )
    except NotFound:
        return False
    return True
