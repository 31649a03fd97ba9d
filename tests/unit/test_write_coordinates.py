"""Write-back: only what moved, the queue before all others, nothing else touched, people first."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import redis

from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.errors import LabelStudioError, NotFound
from ml_backend.domain.generation import Projection
from ml_backend.domain.model import ContentKey, PredictionId, ProjectRef, TaskId
from ml_backend.services.syncing.write_coordinates import AT_HAND, order_of, write_back

REF = ProjectRef("http://127.0.0.1:8080", 3)
COUNT = 30
TASKS = {TaskId(n): ContentKey(f"{n:032x}") for n in range(1, COUNT + 1)}


class Tasks:
    """Label Studio's tasks in memory: the list read and the PATCH that replaces meta and data whole."""

    origin = REF.origin

    def __init__(self) -> None:
        self.tasks: dict[int, dict[str, Any]] = {
            n: {"id": n, "meta": {"mine": n}, "data": {"image": f"/data/{n}.png"}} for n in TASKS
        }
        self.patched: list[int] = []
        self.dies_after = 10**9
        self.refused: set[int] = set()
        self.away = False
        self.meanwhile: Callable[[], None] = lambda: None

    def project(self, project: int) -> dict[str, Any]:
        if self.away:
            raise LabelStudioError("Label Studio can't be reached.")
        return {"id": project}

    def call(self, method: str, path: str, **request: Any) -> Any:
        params = request["params"]
        assert (method, path, params["project"], params["resolve_uri"]) == (
            "GET",
            "/api/tasks",
            REF.id,
            "false",
        )
        wanted = json.loads(params["query"])["selectedItems"]["included"]
        assert params["page_size"] >= len(wanted)
        found = [self.tasks[n] for n in sorted(wanted) if n in self.tasks]
        return {"tasks": json.loads(json.dumps(found)), "total": len(found)}

    def update_task(self, task: TaskId, *, meta: Any = None, data: Any = None) -> None:
        if len(self.patched) >= self.dies_after:
            raise KeyboardInterrupt
        if self.away or task in self.refused:
            raise LabelStudioError(f"PATCH /api/tasks/{task}/ answered 500.")
        if task not in self.tasks:
            raise NotFound(f"Task {task} is gone.")
        self.patched.append(task)
        if meta is not None:
            self.tasks[task]["meta"] = json.loads(json.dumps(meta))
        if data is not None:
            self.tasks[task]["data"] = json.loads(json.dumps(data))
        self.meanwhile()


def projection(generation: int = 1, **moved: tuple[float, float, int]) -> Projection:
    xy = np.linspace(0.1, 0.9, 2 * COUNT).reshape(COUNT, 2).astype(np.float32)
    cluster = np.zeros(COUNT, np.int32)
    for name, (x, y, number) in moved.items():
        row = int(name.removeprefix("t")) - 1
        xy[row] += (x, y)
        cluster[row] = number
    keys = np.array(list(TASKS.values()))
    return Projection(
        generation, keys, xy, cluster, np.ones(COUNT, np.float32), np.zeros((1, 64), np.float32)
    )


def run(
    studio: Any, state: RedisState, found: Projection, order: Sequence[int] = tuple(TASKS), **more: Any
) -> int:
    more.setdefault("sleep", lambda seconds: None)
    return write_back(REF, studio, state, TASKS, found, [TaskId(n) for n in order], **more)


def test_coordinates_are_written_in_order_and_the_rest_of_meta_stays(state: RedisState) -> None:
    studio, heard = Tasks(), []
    order = [5, 3, 9, *(n for n in TASKS if n not in (5, 3, 9))]
    assert run(studio, state, projection(), order, progress=lambda *told: heard.append(told)) == COUNT
    assert studio.patched == order
    x, y = projection().xy[4].round(4).tolist()
    rush = studio.tasks[5]["meta"]["rush"]
    assert rush == {
        "x": pytest.approx(x),
        "y": pytest.approx(y),
        "cluster": 0,
        "generation": 1,
        "key": TASKS[TaskId(5)],
    }
    assert studio.tasks[5]["meta"]["mine"] == 5
    assert studio.tasks[5]["data"] == {"image": "/data/5.png"}
    assert heard == [(n, COUNT) for n in range(1, COUNT + 1)]


def test_only_what_moved_or_changed_cluster_is_written_again(state: RedisState) -> None:
    studio = Tasks()
    run(studio, state, projection())
    studio.patched.clear()
    later = projection(2, t1=(0.02, 0.0, 0), t2=(0.004, 0.004, 0), t3=(0.0, 0.0, 7))
    assert run(studio, state, later) == 2
    assert studio.patched == [1, 3]
    assert studio.tasks[3]["meta"]["rush"]["generation"] == 2
    assert run(studio, state, later) == 0


def test_small_steps_add_up(state: RedisState) -> None:
    studio = Tasks()
    run(studio, state, projection())
    assert run(studio, state, projection(2, t1=(0.008, 0.0, 0))) == 0
    assert run(studio, state, projection(3, t1=(0.016, 0.0, 0))) == 1


def test_what_an_import_wrote_is_not_written_again(state: RedisState) -> None:
    studio = Tasks()
    run(studio, state, projection())
    state.delete_tasks(REF, TASKS)
    studio.patched.clear()
    assert run(studio, state, projection(2)) == 0
    assert studio.patched == []
    assert len(state.written(REF)) == COUNT


def test_columns_are_added_to_the_data_that_is_there(state: RedisState) -> None:
    studio = Tasks()
    run(studio, state, projection())
    assert run(studio, state, projection(), as_data=True) == COUNT
    rush = studio.tasks[7]["meta"]["rush"]
    assert studio.tasks[7]["data"] == {
        "image": "/data/7.png", "rush_x": rush["x"], "rush_y": rush["y"], "rush_cluster": 0,
    }  # fmt: skip
    assert run(studio, state, projection(), as_data=True) == 0
    assert run(studio, state, projection(), as_data=False) == 0


def test_a_run_that_is_cut_off_goes_on_where_it_was(state: RedisState) -> None:
    studio = Tasks()
    studio.dies_after = 17
    with pytest.raises(KeyboardInterrupt):
        run(studio, state, projection())
    studio.dies_after = 10**9
    assert run(studio, state, projection()) == COUNT - 17
    assert studio.patched == list(TASKS)


def test_tasks_that_are_gone_or_not_on_the_map_are_skipped(state: RedisState) -> None:
    studio = Tasks()
    del studio.tasks[4]
    found = projection()
    found.xy[0] = np.nan
    order = [*TASKS, 999]
    assert run(studio, state, found, order) == COUNT - 2
    assert 4 not in studio.patched
    assert 1 not in studio.patched
    assert 4 not in state.written(REF)


def test_what_others_write_meanwhile_stays(state: RedisState) -> None:
    studio = Tasks()

    def script() -> None:
        for number, task in studio.tasks.items():
            if number not in studio.patched:
                task["meta"] = {"owner": "them"}
                task["data"]["more"] = len(studio.patched)

    studio.meanwhile = script
    assert run(studio, state, projection(), as_data=True) == COUNT
    for number, task in list(studio.tasks.items())[1:]:
        assert {name: value for name, value in task["meta"].items() if name != "rush"} == {"owner": "them"}
        assert task["meta"]["rush"]["key"] == TASKS[TaskId(number)]
        assert (task["data"]["more"], "rush_x" in task["data"]) == (number - 1, True)


def test_what_somebody_else_has_put_in_place_meanwhile_is_not_written(state: RedisState) -> None:
    studio = Tasks()

    def another_writer() -> None:
        studio.tasks[2]["meta"]["rush"] = {**studio.tasks[1]["meta"]["rush"], "key": TASKS[TaskId(2)]}
        x, y = projection().xy[1].tolist()
        studio.tasks[2]["meta"]["rush"] |= {"x": x, "y": y}

    studio.meanwhile = another_writer
    assert run(studio, state, projection(), [1, 2, 3]) == 2
    assert studio.patched == [1, 3]


def test_a_task_that_is_not_taken_costs_itself_only(state: RedisState) -> None:
    studio = Tasks()
    studio.refused = {2, 5, 6, 7, 8}
    studio.tasks[9]["meta"] = ["a list"]
    assert run(studio, state, projection()) == COUNT - 6
    assert studio.tasks[9]["meta"] == ["a list"]
    assert not {2, 5, 6, 7, 8, 9} & set(state.written(REF))
    studio.refused = set()
    assert run(studio, state, projection()) == 5


def test_a_label_studio_that_is_away_is_not_asked_for_every_task(state: RedisState) -> None:
    studio = Tasks()

    def leave() -> None:
        studio.away = len(studio.patched) == 4

    studio.meanwhile = leave
    with pytest.raises(LabelStudioError, match="can't be reached"):
        run(studio, state, projection())
    studio.away = False
    assert run(studio, state, projection()) == COUNT - 4


def test_it_waits_while_somebody_submits(state: RedisState, redis_url: str) -> None:
    studio, pauses = Tasks(), []
    state.note_submit(REF)

    def sleep(seconds: float) -> None:
        assert studio.patched == []
        pauses.append(seconds)
        if len(pauses) == 3:
            with redis.Redis.from_url(redis_url) as client:
                client.delete(f"rush:{REF.slug}:submitted")

    assert run(studio, state, projection(), sleep=sleep) == COUNT
    assert len(pauses) == 3
    assert max(pauses) < 1


def test_the_queue_is_written_in_its_order_and_what_is_about_to_be_served_last() -> None:
    queued = [TaskId(n) for n in range(60, 20, -1)]
    window = {task: (PredictionId(task), float(n)) for n, task in enumerate(queued)}
    labelled = {TaskId(60), TaskId(59)}
    order = order_of([TaskId(n) for n in range(1, 71)], window, labelled)
    assert sorted(order) == list(range(1, 71))
    assert order[-AT_HAND:] == queued[2 : 2 + AT_HAND]
    assert order[: 38 - AT_HAND] == queued[2 + AT_HAND :]
