"""The contract of ports.State, on a real Redis."""

import json
import math
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_backend.adapters.processes.servers import LocalRedis
from ml_backend.adapters.redis.state import EVENTS, RedisState
from ml_backend.domain.errors import StoreError
from ml_backend.domain.events import GenerationPublished, Ingested, Synced, WebhookPassedOn
from ml_backend.domain.model import Annotation, AnnotationId, ContentKey, PredictionId, ProjectRef, TaskId
from ml_backend.domain.unread import Unread
from ml_backend.ports import State

A = ProjectRef("http://127.0.0.1:8080", 1)
B = ProjectRef("https://label.example.org/sub", 1)
KEY, OTHER = ContentKey("0" * 31 + "1"), ContentKey("f" * 32)


def note(number: int, task: int, *labels: str, skipped: bool = False) -> Annotation:
    return Annotation(AnnotationId(number), TaskId(task), 7, labels, skipped, 1.5, "2024-01-01", None)


def test_what_was_never_written_is_empty(state: State) -> None:
    assert state.projects() == []
    assert (state.tasks(A), state.annotations(A), state.window(A), state.options(A)) == ({}, [], {}, {})
    assert state.annotation(A, AnnotationId(1)) is None
    assert state.written(A) == {}
    assert (state.sources(A), state.unread(A), state.suspects(A), state.reading(A, "x")) == (
        {},
        {},
        {},
        set(),
    )
    assert state.read_before(A, [TaskId(1)]) == {}


def test_projects_of_two_instances_stay_apart(state: State) -> None:
    state.set_options(A, strategy="random")
    state.set_tasks(B, {TaskId(1): KEY})
    assert state.projects() == [A, B]
    assert state.tasks(A) == {}
    assert state.options(A) == {"strategy": "random"}
    state.set_options(A, label_config="<View/>")
    assert state.options(A) == {"strategy": "random", "label_config": "<View/>"}


def test_writing_nothing_is_fine(state: State) -> None:
    state.set_tasks(A, {})
    state.delete_tasks(A, [])
    state.set_annotations(A, [])
    state.delete_annotations(A, iter(()))
    state.set_window(A, {})
    state.drop_window(A, [])
    state.set_sources(A, {})
    state.set_unread(A, {})
    state.drop_unread(A, [])
    state.set_suspects(A, {})
    assert state.read_before(A, []) == {}
    state.set_written(A, {})
    assert state.tasks(A) == {}


def test_a_late_event_without_a_key_keeps_the_key_that_is_known(state: State) -> None:
    state.set_tasks(A, {TaskId(1): ContentKey(""), TaskId(2): KEY})
    state.set_tasks(A, {TaskId(1): OTHER, TaskId(2): ContentKey("")})
    assert state.tasks(A) == {1: OTHER, 2: KEY}


def test_a_deleted_task_takes_its_annotations_and_rows_along(state: State) -> None:
    state.set_tasks(A, {TaskId(1): KEY, TaskId(2): KEY})
    state.set_annotations(A, [note(10, 1, "cat"), note(11, 2, "dog"), note(12, 1, skipped=True)])
    state.set_window(A, {TaskId(1): (PredictionId(5), -1.0), TaskId(2): (PredictionId(6), 2.0)})
    state.set_written(A, {TaskId(1): "x", TaskId(2): "y"})
    for _ in range(2):
        state.delete_tasks(A, [TaskId(1), TaskId(99)])
        assert state.tasks(A) == {2: KEY}
        assert state.annotations(A) == [note(11, 2, "dog")]
        assert state.window(A) == {2: (6, 2.0)}
        assert state.written(A) == {2: "y"}


def test_an_annotation_that_moved_to_another_task_goes_with_that_task(state: State) -> None:
    state.set_annotations(A, [note(10, 1, "cat")])
    state.set_annotations(A, [note(10, 2, "cat")])
    state.delete_tasks(A, [TaskId(1)])
    assert state.annotation(A, AnnotationId(10)) == note(10, 2, "cat")
    state.delete_tasks(A, [TaskId(2)])
    assert state.annotations(A) == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.builds(
            Annotation,
            id=st.integers(0, 2**63 - 1).map(AnnotationId),
            task=st.integers(0, 2**52).map(TaskId),
            annotator=st.integers(0, 2**40),
            labels=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3).map(tuple),
            skipped=st.booleans(),
            lead_time=st.none() | st.floats(0, 1e6),
            created_at=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
            suggested=st.none() | st.integers(1, 2**40).map(PredictionId),
            machine=st.booleans(),
        ),
        max_size=5,
        unique_by=lambda a: a.id,
    )
)
def test_annotations_come_back_as_they_were(state: State, annotations: list[Annotation]) -> None:
    state.delete_annotations(A, [a.id for a in state.annotations(A)])
    for _ in range(2):
        state.set_annotations(A, annotations)
    assert state.annotations(A) == sorted(annotations, key=lambda a: a.id)
    for _ in range(2):
        state.delete_annotations(A, (a.id for a in annotations))
    assert state.annotations(A) == []


def test_scores_never_meet_from_many_threads(redis_url: str, state: State) -> None:
    def draw(number: int) -> tuple[list[int], list[int]]:
        return list(state.push_scores(A, number % 4 + 1)), list(state.append_scores(A, number % 3 + 1))

    with ThreadPoolExecutor(16) as pool:
        drawn = list(pool.map(draw, range(300)))
    pushed, appended = ([score for pair in drawn for score in pair[side]] for side in (0, 1))
    assert sorted(pushed) == list(range(-len(pushed), 0))
    assert sorted(appended) == list(range(1, len(appended) + 1))
    assert all(list(p) == sorted(p, reverse=True) and list(a) == sorted(a) for p, a in drawn)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(1, 50).map(TaskId), st.floats(-1e12, 1e12), min_size=1, max_size=5))
def test_fresh_scores_lie_outside_of_what_the_window_held(state: State, scores: dict[TaskId, float]) -> None:
    state.set_window(A, {task: (PredictionId(task), score) for task, score in scores.items()})
    assert {task: row[1] for task, row in state.window(A).items() if task in scores} == scores
    assert state.push_scores(A, 2)[0] < min(scores.values())
    assert state.append_scores(A, 2)[0] > max(scores.values())
    state.drop_window(A, scores)
    assert not set(state.window(A)) & set(scores)


def test_where_a_key_was_read_is_noted_beside_it_and_goes_with_its_task(state: State) -> None:
    state.set_tasks(A, {TaskId(1): KEY, TaskId(2): OTHER, TaskId(3): ContentKey("")})
    state.set_sources(A, {TaskId(1): "here", TaskId(3): "there"})
    assert state.read_before(A, [TaskId(n) for n in (2, 9, 1, 3)]) == {1: (KEY, "here"), 2: (OTHER, "")}
    assert state.read_before(B, [TaskId(1)]) == {}
    state.delete_tasks(A, [TaskId(1)])
    assert state.sources(A) == {3: "there"}


def test_images_that_cannot_be_read_come_back_as_they_were(state: State) -> None:
    first, second = Unread(TaskId(1), "gone", 2, 1e9), Unread(TaskId(2), "deadly", 10, math.inf)
    state.set_unread(A, {"a": first, "b": second})
    assert state.unread(A) == {"a": first, "b": second}
    assert [it.due(2e9) for it in state.unread(A).values()] == [True, False]
    state.drop_unread(A, ["b", "x"])
    assert state.unread(A) == {"a": first}
    state.drop_unread(A)
    assert state.unread(A) == state.unread(B) == {}


def test_notes_of_a_run_and_deaths_stay_until_they_are_cleared(state: State) -> None:
    state.note_reading(A, "run", ["a", "b"])
    state.note_reading(A, "run", ["c"])
    assert (state.reading(A, "run"), state.reading(A, "other")) == ({"a", "b", "c"}, set())
    state.end_reading(A, "run")
    assert state.reading(A, "run") == set()
    state.set_suspects(A, {"a": 1, "b": 2})
    state.set_suspects(A, {"a": 0})
    assert state.suspects(A) == {"b": 2}


def test_seconds_since_submit_start_at_the_submit(state: State) -> None:
    assert state.seconds_since_submit(A) == math.inf
    state.note_submit(A)
    first = state.seconds_since_submit(A)
    time.sleep(0.05)
    assert 0 <= first < state.seconds_since_submit(A) < 60
    assert state.seconds_since_submit(B) == math.inf


def test_a_hundred_thousand_tasks_come_back_whole(state: State) -> None:
    tasks = {TaskId(n): ContentKey(f"{n:032x}" if n % 2 else "") for n in range(1, 100_001)}
    state.set_tasks(A, tasks)
    assert state.tasks(A) == tasks
    state.delete_tasks(A, list(tasks)[1:])
    assert list(state.tasks(A)) == [1]


def test_listeners_hear_what_is_published_and_stop_when_it_is_quiet(state: State) -> None:
    heard: list[object] = []
    ready = threading.Event()

    def hear() -> None:
        for event in state.listen(2.0):
            heard.append(event)
            ready.set()

    listener = threading.Thread(target=hear)
    listener.start()
    while not ready.wait(0.02):
        state.publish(A, Synced())
    state.publish(B, WebhookPassedOn({"note": "ä"}))
    state.publish(B, Ingested((TaskId(1), TaskId(2))))
    listener.join(20)
    assert not listener.is_alive()
    assert heard[-2:] == [(B, WebhookPassedOn({"note": "ä"})), (B, Ingested((1, 2)))]
    assert all(event == (A, Synced()) for event in heard[:-2])


def test_listeners_and_writers_survive_a_restart_of_redis() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = LocalRedis(Path(folder))
        server.start()
        state = RedisState(server.url)
        heard: list[object] = []
        listener = threading.Thread(target=lambda: heard.extend(event for _, event in state.listen(6.0)))
        try:
            state.set_tasks(A, {TaskId(1): KEY})
            listener.start()
            server.stop()
            with pytest.raises(StoreError):
                state.tasks(A)
            server.start()
            assert state.tasks(A) == {1: KEY}
            for number in range(20):
                state.publish(A, GenerationPublished(number))
                time.sleep(0.05)
            listener.join(30)
        finally:
            state.close()
            server.stop()
    assert not listener.is_alive()
    assert heard[-1] == GenerationPublished(19)


def test_without_redis_every_call_names_the_address_and_the_next_step() -> None:
    state = RedisState("redis://user:secret@127.0.0.1:1/0")
    for call in (
        state.projects,
        lambda: state.tasks(A),
        lambda: state.push_scores(A, 1),
        lambda: state.set_tasks(A, {TaskId(1): KEY}),
        lambda: state.set_window(A, {TaskId(1): (PredictionId(1), 0.5)}),
        lambda: state.publish(A, Synced()),
    ):
        with pytest.raises(StoreError, match=r"127\.0\.0\.1:1 .*RUSH_REDIS_URL") as caught:
            call()
        assert "secret" not in str(caught.value)
    assert list(state.listen(0.3)) == []


def test_what_is_published_between_two_calls_of_listen_is_heard(redis_url: str) -> None:
    listener, publisher = RedisState(redis_url), RedisState(redis_url)
    ref = ProjectRef("http://between", 1)
    assert list(listener.listen(0.05)) == []
    for number in range(20):
        publisher.publish(ref, GenerationPublished(number))
    heard = [event.number for found, event in listener.listen(0.2) if found == ref]
    listener.close()
    publisher.close()
    assert heard == list(range(20))


def test_an_event_of_another_version_is_passed_over(redis_url: str) -> None:
    listener, publisher = RedisState(redis_url), RedisState(redis_url)
    assert list(listener.listen(0.05)) == []
    with redis.Redis.from_url(redis_url) as client:
        client.publish(EVENTS, json.dumps([A.origin, A.id, "of-tomorrow", {"x": 1}]))
    publisher.publish(A, Synced())
    assert list(listener.listen(0.3)) == [(A, Synced())]
    listener.close()
    publisher.close()
