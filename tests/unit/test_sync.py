"""However events were lost, doubled or reordered: after sync our state is Label Studio's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_backend.adapters.redis.state import RedisState
from ml_backend.controls import Choices
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
from ml_backend.services.syncing.sync import merge, sync

REF = ProjectRef("http://127.0.0.1:8080", 3)
SPEC = Choices("choice", "image", "image", ("cat", "dog"))
KEY, OTHER = ContentKey("a" * 32), ContentKey("b" * 32)


@dataclass
class FakeStudio:
    """Label Studio's tasks, annotations and predictions in memory; ``during`` runs while it is read."""

    origin: str = REF.origin
    tasks: dict[TaskId, Task] = field(default_factory=dict)
    annotations: dict[AnnotationId, Annotation] = field(default_factory=dict)
    rows: dict[PredictionId, PredictionRow] = field(default_factory=dict)
    during: Callable[[], None] = lambda: None

    def records(self, project: int, control: object = None) -> Iterator[TaskRecord]:
        assert project == REF.id
        found = [
            TaskRecord(
                task,
                tuple(a for a in self.annotations.values() if a.task == task.id),
                tuple(row for row in self.rows.values() if row.task == task.id),
            )
            for task in self.tasks.values()
        ]
        self.during()
        yield from found

    def delete_prediction(self, prediction: PredictionId) -> None:
        self.rows.pop(prediction, None)

    # what the tests do to it

    def add(self, number: int, key: str = "") -> TaskId:
        meta = {"rush": {"key": key}} if key else {}
        task = Task(TaskId(number), {"image": f"/data/{number}.png"}, meta)
        self.tasks[task.id] = task
        return task.id

    def predict(self, number: int, task: int, score: float | None, version: str = MODEL_VERSION) -> None:
        self.rows[PredictionId(number)] = PredictionRow(PredictionId(number), TaskId(task), score, version)

    def annotate(self, number: int, task: int, *labels: str, skipped: bool = False) -> Annotation:
        made = Annotation(AnnotationId(number), TaskId(task), 1, labels, skipped)
        self.annotations[made.id] = made
        return made


@pytest.fixture
def state(redis_url: str) -> Iterator[RedisState]:
    found = RedisState(redis_url)
    empty(redis_url)
    yield found
    found.close()


def empty(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()


def run(studio: Any, state: RedisState, **more: Any) -> Any:
    return sync(REF, studio, state, SPEC, **more)


def assert_equal(studio: FakeStudio, state: RedisState) -> None:
    assert set(state.tasks(REF)) == set(studio.tasks)
    assert {a.id: a for a in state.annotations(REF)} == studio.annotations
    labelled = {a.task for a in studio.annotations.values() if not a.skipped}
    best: dict[TaskId, tuple[PredictionId, float]] = {}
    for row in sorted(studio.rows.values(), key=lambda r: (r.score or 0, r.id)):
        if row.task not in labelled and row.model_version == MODEL_VERSION and row.score is not None:
            best.setdefault(row.task, (row.id, row.score))
    assert state.window(REF) == best


def test_an_empty_state_is_rebuilt(state: RedisState) -> None:
    studio = FakeStudio()
    for number, key in ((1, KEY), (2, ""), (3, ""), (4, "")):
        studio.add(number, key)
    studio.tasks[TaskId(4)] = Task(TaskId(4), {"text": "no image"})
    studio.annotate(10, 1, "cat")
    studio.annotate(11, 2, skipped=True)
    for task in (1, 2, 3):
        studio.predict(20 + task, task, -float(task))
    studio.predict(30, 3, -50.0, version="somebody else's")
    state.set_tasks(REF, {TaskId(2): OTHER})
    report = run(studio, state)
    assert_equal(studio, state)
    assert state.tasks(REF) == {1: KEY, 2: OTHER, 3: "", 4: ""}
    assert [task.id for task in report.to_embed] == [3]
    assert (report.tasks, report.annotations, report.window, report.deleted_predictions) == (4, 2, 2, 0)
    again = run(studio, state)
    assert again == replace(report, changed=0)
    assert state.push_scores(REF, 1)[0] < -3


def test_only_the_lowest_prediction_of_a_task_survives(state: RedisState) -> None:
    studio = FakeStudio()
    studio.add(1, KEY)
    for number, score in ((5, 1.0), (6, -7.0), (7, -7.0), (8, None)):
        studio.predict(number, 1, score)
    studio.predict(9, 1, -99.0, version="other")
    assert run(studio, state).deleted_predictions == 3
    assert set(studio.rows) == {6, 9}
    assert state.window(REF) == {1: (6, -7.0)}


def test_a_row_without_a_score_is_no_place_in_the_queue(state: RedisState) -> None:
    studio = FakeStudio()
    studio.add(1, KEY)
    studio.predict(5, 1, None)
    assert run(studio, state).deleted_predictions == 1
    assert studio.rows == {}
    assert state.window(REF) == {}


def test_what_an_event_changed_during_the_read_stays(state: RedisState) -> None:
    studio = FakeStudio()
    for number in (1, 2, 3):
        studio.add(number, KEY)
        studio.predict(20 + number, number, float(number))
    old = studio.annotate(10, 1, "cat")
    gone = studio.annotate(11, 2, "cat")
    run(studio, state)
    new = replace(old, labels=("dog",))

    def events() -> None:
        state.set_annotations(REF, [new])
        state.delete_annotations(REF, [gone.id])
        state.set_tasks(REF, {TaskId(9): OTHER})
        state.delete_tasks(REF, [TaskId(3)])
        state.set_window(REF, {TaskId(2): (PredictionId(22), -5.0), TaskId(9): (PredictionId(0), -4.0)})

    studio.during = events
    studio.predict(40, 2, 1.5)
    studio.annotate(12, 3, "dog")
    report = run(studio, state)
    assert state.tasks(REF) == {1: KEY, 2: KEY, 9: OTHER}
    assert state.annotations(REF) == [new]
    assert state.window(REF) == {2: (22, -5.0), 9: (0, -4.0)}
    assert report.deleted_predictions == 0
    assert set(studio.rows) == {21, 22, 23, 40}


def test_an_answer_during_the_read_takes_its_task_out_of_the_window(state: RedisState) -> None:
    studio = FakeStudio()
    studio.add(1, KEY)
    studio.predict(21, 1, 1.0)
    run(studio, state)
    answer = Annotation(AnnotationId(10), TaskId(1), 1, ("cat",))
    studio.during = lambda: state.set_annotations(REF, [answer])
    run(studio, state)
    assert state.annotations(REF) == [answer]
    assert state.window(REF) == {}


def test_a_known_key_is_kept_where_label_studio_has_none(state: RedisState) -> None:
    studio = FakeStudio()
    task = studio.add(1)
    state.set_tasks(REF, {task: OTHER})
    assert run(studio, state).to_embed == ()
    assert state.tasks(REF) == {1: OTHER}


def test_an_image_at_another_address_than_it_was_read_at_is_read_anew(state: RedisState) -> None:
    studio = FakeStudio()
    for number in (1, 2, 3):
        studio.add(number, KEY)
    assert run(studio, state).to_embed == (), "where an imported key was read isn't known: here"
    studio.tasks[TaskId(2)] = replace(studio.tasks[TaskId(2)], data={"image": "/data/other.png"})
    for _ in range(2):
        assert [task.id for task in run(studio, state).to_embed] == [2]
    assert state.tasks(REF)[TaskId(2)] == KEY, "until then it keeps the old one"
    state.set_sources(REF, {TaskId(2): address_digest("/data/other.png")})
    assert run(studio, state).to_embed == ()


def test_a_new_task_at_a_known_address_is_read(state: RedisState) -> None:
    studio = FakeStudio()
    studio.add(1, KEY)
    run(studio, state)
    studio.tasks[TaskId(2)] = Task(TaskId(2), {"image": "/data/1.png"})
    assert [task.id for task in run(studio, state).to_embed] == [2]


def test_lost_features_are_embedded_again(state: RedisState) -> None:
    class Lacking:
        def missing(self, keys: Any) -> list[str]:
            return [key for key in keys if key == OTHER]

    studio = FakeStudio()
    studio.add(1, KEY)
    studio.add(2, OTHER)
    assert [task.id for task in run(studio, state, features=Lacking()).to_embed] == [2]


def test_a_failing_read_changes_nothing(state: RedisState) -> None:
    studio = FakeStudio()
    studio.add(1, KEY)
    run(studio, state)
    studio.tasks.clear()

    def fail() -> None:
        raise LabelStudioError("GET /api/tasks answered 500.")

    studio.during = fail
    with pytest.raises(LabelStudioError):
        run(studio, state)
    assert state.tasks(REF) == {1: KEY}


def test_progress_counts_tasks(state: RedisState) -> None:
    studio, heard = FakeStudio(), []
    for number in (1, 2, 3):
        studio.add(number)
    run(studio, state, progress=heard.append)
    assert heard == [1, 2, 3]


@given(*[st.dictionaries(st.integers(0, 4), st.integers(0, 2)) for _ in range(3)])
def test_merge_takes_what_changed_from_after_and_the_rest_from_truth(
    before: dict[int, int], truth: dict[int, int], after: dict[int, int]
) -> None:
    merged = merge(before, truth, after)
    for key in range(5):
        expected = truth if before.get(key) == after.get(key) else after
        assert merged.get(key) == expected.get(key)


# ---- any history of events

TASKS, ANNOTATIONS, ROWS = st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), TASKS, st.sampled_from(["", KEY])),
        st.tuples(st.just("remove"), TASKS),
        st.tuples(st.just("annotate"), ANNOTATIONS, TASKS, st.sampled_from(["cat", "dog"]), st.booleans()),
        st.tuples(st.just("undo"), ANNOTATIONS),
        st.tuples(st.just("predict"), ROWS, TASKS, st.none() | st.integers(-9, 9)),
    ),
    max_size=14,
)
DELIVERIES = st.lists(st.integers(0, 13), max_size=24)
"""Which event arrives when: any may be missing, doubled or late."""


def act(studio: FakeStudio, step: tuple[Any, ...]) -> Callable[[RedisState], None] | None:
    """Do one thing to Label Studio; returns what its webhook would do to our state."""
    match step:
        case ("add", number, key):
            task = studio.add(number, key)
            return lambda state: state.set_tasks(REF, {task: ContentKey(key)})
        case ("remove", number):
            task = TaskId(number)
            studio.tasks.pop(task, None)
            studio.annotations = {k: a for k, a in studio.annotations.items() if a.task != task}
            studio.rows = {k: row for k, row in studio.rows.items() if row.task != task}
            return lambda state: state.delete_tasks(REF, [task])
        case ("annotate", number, task, label, skipped) if task in studio.tasks:
            made = studio.annotate(number, task, *(() if skipped else (label,)), skipped=skipped)
            return lambda state: state.set_annotations(REF, [made])
        case ("undo", number):
            studio.annotations.pop(number, None)
            return lambda state: state.delete_annotations(REF, [number])
        case ("predict", number, task, score) if task in studio.tasks:
            place = None if score is None else float(score)
            studio.predict(number, task, place)
            return lambda state: state.set_window(REF, {task: (number, place or 0.0)})
    return None


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, deliveries=DELIVERIES, in_read=st.integers(0, 14))
def test_after_any_history_two_syncs_make_our_state_label_studios(
    redis_url: str, state: RedisState, steps: list[Any], deliveries: list[int], in_read: int
) -> None:
    empty(redis_url)
    studio = FakeStudio()
    events = [act(studio, step) for step in steps]

    def deliver(which: list[int]) -> None:
        for number in which:
            if number < len(events) and (event := events[number]) is not None:
                event(state)

    deliver(deliveries[in_read:])
    undisturbed = not deliveries[:in_read]
    studio.during = lambda: deliver(deliveries[:in_read])
    run(studio, state)
    studio.during = lambda: None
    if undisturbed:
        assert_equal(studio, state)
    run(studio, state)
    assert_equal(studio, state)
    assert run(studio, state).changed == 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=STEPS, during=STEPS)
def test_events_that_arrive_during_the_read_are_not_lost(
    redis_url: str, state: RedisState, before: list[Any], during: list[Any]
) -> None:
    """Label Studio changes while it is read, each webhook arrives, no annotation is touched twice."""
    empty(redis_url)
    studio = FakeStudio()
    for step in before:
        act(studio, step)
    run(studio, state)
    touched: set[Any] = set()

    def go_on() -> None:
        for step in during:
            if step[0] not in ("annotate", "undo") or step[1] in touched:
                continue
            touched.add(step[1])
            event = act(studio, step)
            if event is not None:
                event(state)

    studio.during = go_on
    run(studio, state)
    assert {a.id: a for a in state.annotations(REF)} == studio.annotations
