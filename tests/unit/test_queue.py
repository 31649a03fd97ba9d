"""The queue over real Redis: what comes next, and that Label Studio serves just that."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

import strategies
from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.events import StrategyChosen
from ml_backend.domain.model import EMPTY, AnnotationId, LabelState, Task, TaskId
from ml_backend.services.queue import order
from ml_backend.services.serving.maintenance import Maintenance
from strategies import registry
from tests.fakes import World, states_in

QUEUED = [
    "cluster_chain",
    "random",
    "uncertainty",
    "diversity",
    "rush",
    "auto",
    "certain(0.9)",
    "mix(cluster_chain:0.8,random:0.2)",
]


def elsewhere(work: Callable[[], Any]) -> Any:
    """Do it as another request would, in a thread of its own."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(work).result(20)


@pytest.fixture
def world(state: RedisState) -> World:
    made = World(state)
    made.settle()
    return made


def test_a_chain_stays_in_its_region_and_label_studio_serves_it(world: World) -> None:
    task = world.studio.serve(1)
    for _ in range(9):
        assert task is not None
        move = world.answer(task)
        served = world.studio.serve(1)
        assert served == move.task
        assert world.label_of(served) == world.label_of(task)
        task = served


def test_every_submit_costs_at_most_one_write(world: World) -> None:
    task = world.studio.serve(1)
    for _ in range(15):
        before = world.studio.writes
        move = world.answer(task)
        assert world.studio.writes - before == int(move.written)
        task = world.studio.serve(1)
        assert task == move.task


@pytest.mark.parametrize("strategy", QUEUED)
def test_everything_is_labelled_once_and_then_nothing_comes(state: RedisState, strategy: str) -> None:
    world = World(state, strategy=strategy)
    world.settle()
    task, seen = world.studio.serve(1), []
    while task is not None:
        seen.append(task)
        move = world.answer(task)
        world.settle(1)
        task = world.studio.serve(1)
        assert task == (move.task if move else None)
    assert sorted(seen) == world.tasks
    assert move is None


def test_two_annotators_walk_their_own_chains(world: World) -> None:
    tasks = {who: world.studio.serve(who) for who in (1, 2)}
    assert world.label_of(tasks[1]) != world.label_of(tasks[2])
    for _ in range(6):
        for who in (1, 2):
            move = world.answer(tasks[who], who=who)
            following = world.studio.serve(who)
            assert following == move.task
            assert world.label_of(following) == world.label_of(tasks[who])
            tasks[who] = following


def test_what_is_promised_to_one_annotator_is_never_given_to_another(world: World) -> None:
    reserved = world.answer(TaskId(1), who=1).task
    for task in (4, 7, 10, 13):
        if task != reserved:
            assert world.answer(TaskId(task), who=2).task != reserved


@pytest.mark.parametrize("label", ["a", "b"])
def test_a_change_of_any_earlier_answer_leaves_the_chain_where_it_is(world: World, label: str) -> None:
    first = world.studio.serve(1)
    world.answer(first)
    for task in (TaskId(2), TaskId(3)):  # other labels: the chain's history forgets the first task
        move = world.answer(task)
    assert world.answer(first, label, number=1).task == move.task


def test_the_same_submit_with_another_id_leaves_the_chain_where_it_is(world: World) -> None:
    move = world.answer(TaskId(1))
    again = world.answer(TaskId(1))
    assert (again.task, again.written) == (move.task, False)


@pytest.mark.parametrize("number", [2, None])
def test_a_skip_delivered_twice_leaves_the_chain_where_it_is(world: World, number: int | None) -> None:
    world.answer(TaskId(1))
    move = world.answer(TaskId(4), skipped=True)
    assert world.answer(TaskId(4), skipped=True, number=number).task == move.task


def test_a_skip_gives_no_label_away_and_the_chain_goes_on(world: World) -> None:
    skipped = world.answer(TaskId(1)).task
    move = world.answer(skipped, skipped=True)
    assert states_in(world.index)[skipped] == LabelState.SKIPPED
    assert world.label_of(move.task) == "a"
    assert world.queue.sessions[1].history == [1]


def test_a_deleted_annotation_opens_its_task_again(world: World) -> None:
    for task in world.tasks[:-1]:
        world.answer(task)
    world.answer(world.tasks[-1])
    world.project.unannotated([AnnotationId(5)])
    world.studio.closed.discard(TaskId(5))
    move = world.answer(world.tasks[0], "b", number=1)
    assert move.task == 5
    assert world.studio.serve(1) == 5


def test_scores_in_front_fall_strictly(world: World) -> None:
    scores = []
    for task in world.tasks[:8]:
        move = world.answer(task, who=task)
        if move.written:
            scores.append(world.queue.window.places[move.task].score)
    assert scores == sorted(set(scores), reverse=True)


def test_label_studio_down_loses_no_answer_and_the_queue_recovers(world: World) -> None:
    world.studio.down = True
    world.answer(TaskId(1))
    assert world.state.annotations(world.ref)[0].task == 1
    world.studio.down = False
    move = world.answer(TaskId(4))
    assert world.studio.serve(1) == move.task
    assert len({row.task for row in world.studio.predictions(1)}) == len(world.studio.rows)


def test_a_prediction_that_was_deleted_is_made_anew(world: World) -> None:
    world.studio.rows.clear()
    move = world.answer(TaskId(1))
    assert world.studio.serve(1) == move.task


@pytest.mark.parametrize("annotators", [1, 3, 12])
def test_the_window_never_runs_dry(state: RedisState, annotators: int) -> None:
    world = World(state, count=60)
    world.settle()
    seen: set[TaskId] = set()
    for _ in range(60 // annotators):
        for who in range(annotators):
            task = world.studio.serve(who)
            assert task is not None
            assert task not in seen
            seen.add(task)
            world.answer(task, who=who)
        world.settle(1)
    assert len(seen) == 60


def test_a_strategy_switch_takes_effect_at_the_next_submit(state: RedisState, world: World) -> None:
    world.answer(TaskId(1))
    state.set_options(world.ref, strategy="diversity")
    world.project.on_event(StrategyChosen())
    best = [task for task in world.queue.ranking if task not in (1, 2)]
    move = world.answer(TaskId(2), who=2)
    assert move.task == best[0]
    assert world.studio.serve(2) == move.task


def test_while_the_front_is_renewed_the_promised_task_is_served_at_every_moment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = world.answer(TaskId(1))
    fronts: list[TaskId] = []
    write = world.studio._write

    def watched() -> None:
        write()
        fronts.append(min((score, task) for task, score, _ in world.studio.rows.values())[1])

    monkeypatch.setattr(world.studio, "_write", watched)
    world.queue.renew_front(world.project.pool, world.studio)
    after = min((score, task) for task, score, _ in world.studio.rows.values())[1]
    assert len(fronts) > 2
    assert {*fronts, after} == {move.task}


@pytest.mark.usefixtures("hasty")
def test_a_submit_without_a_write_while_the_front_is_renewed_gets_what_it_was_promised(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in (1, 2, 3):
        move = world.answer(TaskId(task))
    assert world.studio.serve(1) == move.task
    world.queue.look_ahead(world.project.pool, world.studio)
    write, moves = world.studio._write, []

    def answered_meanwhile() -> None:
        write()
        if not moves:
            moves.append(None)  # the submit may write itself
            moves[0] = elsewhere(lambda: world.answer(move.task))

    monkeypatch.setattr(world.studio, "_write", answered_meanwhile)
    world.queue.renew_front(world.project.pool, world.studio)
    assert not moves[0].written
    assert world.studio.serve(1) == moves[0].task


def test_a_window_loaded_while_a_write_is_under_way_keeps_the_newer_score(world: World) -> None:
    pool, window = world.project.pool, world.queue.window
    task = TaskId(9)
    window.stage(pool, task, EMPTY)
    score = window.places[task].score
    window.load(world.ref)
    window.write(pool, task, world.studio)
    assert window.places[task].score == score
    assert world.studio.serve(1) == task


def test_of_two_writes_of_one_task_the_first_tells_label_studio_the_newer_place(world: World) -> None:
    # Else a submit whose place was staged anew in between would return before anybody has written it.
    pool, window, task = world.project.pool, world.queue.window, TaskId(9)
    window.stage(pool, task, EMPTY)
    window.stage(pool, task, EMPTY)
    writes = world.studio.writes
    for _ in range(2):
        window.write(pool, task, world.studio)
        assert [row.score for row in world.studio.predictions(1, [task])] == [window.places[task].score]
        assert world.studio.serve(1) == task
    assert world.studio.writes == writes + 1


def test_what_is_being_written_in_bulk_is_not_chosen_unless_nothing_else_is_open(
    state: RedisState, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Label Studio on PostgreSQL skips tasks whose rows a transaction holds (SELECT ... SKIP LOCKED).
    world = World(state, count=120, window=60)
    chosen: list[TaskId] = []
    store = world.studio.import_predictions

    def meanwhile(project: int, rows: Sequence[Mapping[str, Any]]) -> int:
        arriving, task = {row["task"] for row in rows}, None
        for _ in range(10):
            task = task or next(task for task in world.tasks if task not in arriving)
            task = elsewhere(partial(world.answer, task)).task
            chosen.append(task)
        assert not arriving & {*chosen}
        return store(project, rows)

    monkeypatch.setattr(world.studio, "import_predictions", meanwhile)
    Maintenance(world.project).run()
    assert chosen


def test_where_a_bulk_request_takes_longer_the_window_is_filled_one_by_one(
    state: RedisState, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(state, count=120, window=80)
    sent: list[int] = []
    store = world.studio.import_predictions

    def counted(project: int, rows: Sequence[Mapping[str, Any]]) -> int:
        sent.append(len(rows))
        return store(project, rows)

    monkeypatch.setattr(world.studio, "import_predictions", counted)
    world.queue.window._single_seconds = 0.0
    world.settle(1)
    assert len(sent) == 1
    world.settle(1)
    assert len(sent) == 1
    assert len(world.studio.predictions(1)) > sent[0]
    monkeypatch.setattr("ml_backend.services.queue.window.BULK_AGAIN_SECONDS", -1.0)
    world.answer(TaskId(1))
    world.settle(2)
    assert len(sent) > 1, "Label Studio may have been restarted with the flag"
    rows = world.studio.predictions(1)
    assert len({row.task for row in rows}) == len(rows) >= 79


def test_a_place_that_could_not_be_written_is_written_by_whoever_comes_next(world: World) -> None:
    pool, window, task = world.project.pool, world.queue.window, TaskId(9)
    world.studio.down = True
    window.stage(pool, task, EMPTY)
    window.stage(pool, task, EMPTY)
    window.write(pool, task, world.studio)
    world.studio.down = False
    window.write(pool, task, world.studio)
    assert world.studio.serve(1) == task


def test_answers_that_arrive_while_everything_is_reloaded_are_all_there_afterwards(state: RedisState) -> None:
    world = World(state, count=120, window=40)
    world.settle()

    def label(who: int) -> None:
        for task in world.tasks[who::4]:
            world.answer(task, who=who, number=int(task))

    with ThreadPoolExecutor(4) as people:
        work = [people.submit(label, who) for who in range(4)]
        while not all(one.done() for one in work):
            world.project.reload()
            Maintenance(world.project).run()
        for one in work:
            one.result()
    assert world.project.pool.counts()["labelled"] == 120
    assert set(states_in(world.index).values()) == {LabelState.LABELLED}
    world.project.queue.window.resolve(world.project.pool, world.studio)
    held = [row.task for row in world.studio.predictions(1)]
    assert len(held) == len(set(held))


def test_a_strategy_that_fails_neither_stops_submits_nor_empties_the_window(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> int:
        raise ZeroDivisionError("by somebody else")

    broken = strategies.Chain("broken", (), fail, strategies.Batch("broken", (), fail))
    monkeypatch.setitem(registry.BUILT_IN, "broken", broken)
    world.queue.strategy = "broken"
    world.settle()
    assert "random order" in world.queue.fallback
    move = world.answer(world.studio.serve(1))
    assert world.studio.serve(1) == move.task


def test_predictions_handed_to_label_studio_are_forgotten_only_when_they_are_long_overdue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    window, pool = world.queue.window, world.project.pool
    lacking = next(task for task in world.tasks if task not in window)
    world.project.predictions([Task(lacking, {})])
    window.resolve(pool, world.studio)
    assert lacking in window
    monkeypatch.setattr("ml_backend.services.queue.window.ARRIVAL_SECONDS", -1.0)
    window.resolve(pool, world.studio)
    assert lacking not in window
    assert lacking not in world.state.window(world.ref)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking ahead at once instead of when Label Studio is done serving."""
    monkeypatch.setattr(order, "SERVED_SECONDS", -1.0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("strategy", strategies.names())
def test_after_looking_ahead_an_accepted_suggestion_needs_no_write(state: RedisState, strategy: str) -> None:
    world = World(state, count=60, strategy=strategy)
    world.settle()
    for task in range(1, 7):  # two of each label, so that suggestions are right
        world.answer(TaskId(task))
    world.studio.locks.clear()
    world.settle(1)
    task, written = world.answer(TaskId(7)).task, []
    assert world.studio.serve(1) == task
    for _ in range(10):
        world.settle(1)
        world.queue.look_ahead(world.project.pool, world.studio)
        move = world.answer(task)
        written.append(move.written)
        task = world.studio.serve(1)
        assert task == move.task
    # Where the order follows each label, a new order may come in between.
    assert written.count(False) >= (10 if strategy in ("cluster_chain", "random") else 5), written


@pytest.mark.usefixtures("hasty")
def test_looking_ahead_leaves_the_promised_task_in_front_and_happens_once(world: World) -> None:
    move, before = world.answer(TaskId(1)), world.studio.writes
    for _ in range(3):
        world.queue.look_ahead(world.project.pool, world.studio)
    assert world.studio.writes == before + 1
    assert world.studio.serve(1) == move.task


@pytest.mark.usefixtures("hasty")
def test_nothing_is_looked_ahead_while_two_are_at_work(world: World) -> None:
    world.answer(TaskId(1), who=1)
    world.answer(TaskId(2), who=2)
    writes = world.studio.writes
    world.queue.look_ahead(world.project.pool, world.studio)
    assert world.studio.writes == writes


@pytest.mark.usefixtures("hasty")
def test_a_submit_does_not_trust_a_write_that_is_still_under_way(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in (1, 2, 3):
        move = world.answer(TaskId(task))
    assert world.studio.serve(1) == move.task
    started, go, real = threading.Event(), threading.Event(), world.studio.update_prediction
    made = world.studio.create_prediction

    def slow(write: Any, *given: Any) -> Any:
        if not started.is_set():
            started.set()
            assert go.wait(10)
        return write(*given)

    monkeypatch.setattr(world.studio, "update_prediction", partial(slow, real))
    monkeypatch.setattr(world.studio, "create_prediction", partial(slow, made))
    with ThreadPoolExecutor(2) as pool:
        ahead = pool.submit(world.queue.look_ahead, world.project.pool, world.studio)
        assert started.wait(10)
        answer = pool.submit(world.answer, move.task)
        while not any(place.writing == 2 for place in world.queue.window.places.values()):
            time.sleep(0.01)  # until the submit waits for the write
        go.set()
        following = answer.result(10)
        ahead.result(10)
    assert following.written
    assert world.studio.serve(1) == following.task


def test_a_task_that_an_import_brought_a_prediction_for_gets_no_second_one(state: RedisState) -> None:
    world = World(state, count=9)
    imported = {TaskId(5): 3.0, TaskId(8): 4.0}  # Label Studio's event came before the importer's own note
    for task, score in imported.items():
        world.studio.create_prediction(1, task, score, [])
    world.settle()
    held = [row.task for row in world.studio.predictions(1)]
    assert len(held) == len(set(held))
    assert {task: world.queue.window.score(task) for task in imported} == imported
    assert {task: world.state.window(world.ref)[task][1] for task in imported} == imported
