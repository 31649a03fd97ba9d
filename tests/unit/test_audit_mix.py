"""Audits in the queue: mixed in blindly, chains intact around them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import redis

from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.audit_sample import AuditSample
from ml_backend.domain.events import AuditSampleChanged
from ml_backend.domain.model import AnnotationId, TaskId
from ml_backend.services.certification.audit_sample import ask_more, draw_sample
from strategies.audits.certify import audits_needed
from strategies.audits.target import Target
from tests.fakes import World

AUDITS = [TaskId(n) for n in (5, 14, 26, 28)]


def drawn(world: World, audits: list[TaskId], *, share: float = 1.0, hidden: bool = False) -> AuditSample:
    """A draw whose audits are these tasks, in this order, published as ``rush audit`` would."""
    order = [*audits, *(task for task in world.tasks if task not in audits)]
    sample = AuditSample(
        number=1,
        made="2026-01-01",
        seed=3,
        generation=0,
        target=Target(0.1, 0.9),
        planned=len(audits),
        count=len(audits),
        share=share,
        hidden=hidden,
        answers=(("a",), ("b",), ("c",)),
        tasks=np.array(order, np.int64),
        suggested=np.array(["abc".index(world.label_of(task)) for task in order], np.int32),
        confidences=np.ones(len(order), np.float32),
    )
    world.ports.artifacts.publish_audit_sample(world.ref, sample)
    world.project.on_event(AuditSampleChanged())
    return sample


def tasks_of(world: World, label: str) -> list[TaskId]:
    return [task for task in world.tasks if world.label_of(task) == label]


@pytest.fixture
def world(state: RedisState) -> World:
    made = World(state)
    made.settle()
    return made


def test_audits_are_served_in_the_order_of_the_draw_where_suggestions_are_hidden(world: World) -> None:
    world.answer(TaskId(1))
    drawn(world, AUDITS, hidden=True)
    served = [world.answer(TaskId(4)).task]
    while served[-1] in AUDITS:
        assert world.studio.serve(1) == served[-1]
        served.append(world.answer(served[-1]).task)
    assert served[:-1] == AUDITS


def test_audits_of_the_class_at_hand_go_first_so_that_they_take_less_time(world: World) -> None:
    world.answer(TaskId(1))
    audits = [task for pair in zip(*(tasks_of(world, c)[1:5] for c in "ab"), strict=True) for task in pair]
    drawn(world, audits)
    served = [world.answer(TaskId(tasks_of(world, "b")[0])).task]
    while served[-1] in audits:
        served.append(world.answer(served[-1]).task)
    assert served[:-1] == [*audits[1::2], *audits[::2]]


def test_the_chain_goes_on_after_an_audit_from_where_it_was(world: World) -> None:
    without = world.answer(TaskId(1)).task
    assert world.label_of(without) == "a"
    drawn(world, [TaskId(14)])
    assert world.answer(without).task == 14  # an audit of another region
    history = list(world.queue.sessions[1].history)
    move = world.answer(TaskId(14))
    assert world.queue.sessions[1].history == history == [without, 1]
    assert world.label_of(move.task) == "a"
    assert world.studio.serve(1) == move.task


def test_a_skipped_audit_leaves_the_chain_alone_too(world: World) -> None:
    world.answer(TaskId(1))
    drawn(world, [TaskId(14)])
    assert world.answer(TaskId(4)).task == 14
    move = world.answer(TaskId(14), skipped=True)
    assert world.label_of(move.task) == "a"


def test_about_the_share_of_what_is_served_are_audits(state: RedisState) -> None:
    world = World(state, count=300, window=40)
    world.settle()
    audits = [TaskId(n) for n in range(2, 300, 3)]
    drawn(world, audits, share=0.25)
    task, put_in = TaskId(1), []
    for _ in range(120):
        task = world.answer(task).task
        put_in.append(world.queue.sessions[1].audit == task)  # not what the strategy came upon by itself
    assert 15 <= sum(put_in) <= 45
    gaps = np.diff(np.flatnonzero(put_in))
    assert len(set(gaps.tolist())) > 2, "a fixed rhythm could be counted"


def test_two_annotators_never_get_the_same_audit(world: World) -> None:
    drawn(world, AUDITS)
    first = world.answer(TaskId(1), who=1).task
    second = world.answer(TaskId(2), who=2).task
    assert len({first, second} & set(AUDITS)) == 2
    assert world.answer(first, who=1).task in set(AUDITS) - {first, second}


def test_the_same_event_twice_takes_no_second_audit(world: World) -> None:
    drawn(world, AUDITS)
    move = world.answer(TaskId(1), number=50)
    assert world.answer(TaskId(1), number=50).task == move.task
    assert move.task in AUDITS


@pytest.mark.parametrize("hidden", [False, True])
def test_suggestions_of_audits_are_shown_or_hidden_everywhere(world: World, hidden: bool) -> None:
    for task in (1, 2, 3):
        world.answer(TaskId(task))
    world.settle()
    drawn(world, AUDITS, hidden=hidden)
    move = world.answer(TaskId(4))
    assert move.task in AUDITS
    shown = next(result for task, _, result in world.studio.rows.values() if task == move.task)
    assert bool(shown) != hidden
    from ml_backend.domain.model import Task

    answers = world.project.predictions([Task(AUDITS[0], {}), Task(TaskId(7), {})])
    assert [bool(answer["result"]) for answer in answers] == [not hidden, True]
    world.project.reload()
    assert world.project.predictions([Task(AUDITS[1], {})])[0]["result"] == [] or not hidden


def test_audits_are_forgotten_once_answered_and_found_again_after_a_reload(world: World) -> None:
    drawn(world, AUDITS[:1])
    world.answer(TaskId(1))
    world.answer(AUDITS[0], number=77)
    assert world.answer(TaskId(4)).task != AUDITS[0]
    world.project.unannotated([AnnotationId(77)])
    world.studio.closed.discard(AUDITS[0])
    world.project.reload()
    assert world.answer(TaskId(7)).task == AUDITS[0]


def test_a_lost_redis_loses_no_draw(world: World, redis_url: str) -> None:
    drawn(world, AUDITS)
    tasks = world.state.tasks(world.ref)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    world.state.set_options(world.ref, label_config=world.config, strategy=world.strategy)
    world.state.set_tasks(world.ref, tasks)  # as rush sync does
    world.project.reload()
    assert world.project.report()["audits"] == len(AUDITS)
    assert world.answer(TaskId(1)).task in AUDITS


def test_a_draw_freezes_every_open_task_in_random_order(world: World) -> None:
    for task in (1, 2, 3):
        world.answer(TaskId(task))
    backend = world.ports
    parts = (world.ref, world.state, backend.artifacts, world.features)
    sample = draw_sample(*parts, Target(0.1, 0.9), seed=1, surest=1.0)
    assert sorted(sample.tasks.tolist()) == world.tasks[3:]
    assert sample.tasks.tolist() != world.tasks[3:]
    said = {
        task: sample.answers[n]
        for task, n in zip(sample.tasks.tolist(), sample.suggested.tolist(), strict=True)
    }
    assert said == {task: (world.label_of(task),) for task in world.tasks[3:]}
    assert 1 <= sample.count == sample.planned <= len(sample)
    again = draw_sample(*parts, Target(0.1, 0.9), seed=1, surest=1.0, count=5)
    assert (again.number, again.count) == (2, 5)
    assert again.tasks.tolist() == sample.tasks.tolist()
    assert draw_sample(*parts, Target(0.1, 0.9), seed=2, surest=1.0).tasks.tolist() != sample.tasks.tolist()


def test_a_draw_from_the_surest_leaves_the_others_out(world: World) -> None:
    for task in (1, 2, 3):
        world.answer(TaskId(task))
    parts = (world.ref, world.state, world.ports.artifacts, world.features)
    whole, part = (draw_sample(*parts, Target(0.1, 0.9), surest=share) for share in (1.0, 0.5))
    assert len(part) == 14
    assert part.confidences.min() >= np.sort(whole.confidences)[-14]
    assert 1 <= len(draw_sample(*parts, Target(0.1, 0.9))) <= len(whole)


def test_errors_may_be_a_share_of_all_labels_that_there_will_be(world: World) -> None:
    for task in (1, 2, 3):
        world.answer(TaskId(task))
    parts = (world.ref, world.state, world.ports.artifacts, world.features)
    sample = draw_sample(*parts, Target(0.1, 0.9), surest=0.5, of_all=True)
    assert (len(sample), sample.target.of, sample.target.tolerated(len(sample))) == (14, 30, 3)
    assert sample.count == min(sample.planned, audits_needed(sample.target, 0.0, 14))
    assert draw_sample(*parts, Target(0.1, 0.9), surest=0.5, of_all=True, count=13).count == 13


@pytest.mark.slow
def test_every_task_is_equally_likely_to_be_an_audit(world: World) -> None:
    for task in (1, 2, 3):
        world.answer(TaskId(task))
    counts = dict.fromkeys(world.tasks, 0)
    for seed in range(200):
        parts = (world.ref, world.state, world.ports.artifacts, world.features)
        for task in draw_sample(*parts, Target(0.1, 0.9), seed=seed, surest=1.0, count=9).audits:
            counts[task] += 1
    drawn_ = np.array([counts[task] for task in world.tasks[3:]])
    assert drawn_.sum() == 200 * 9
    assert abs(drawn_ - 200 / 3).max() < 4 * np.sqrt(200 * 2 / 9)


def test_more_audits_are_the_next_of_the_same_draw(world: World) -> None:
    sample = drawn(world, AUDITS)
    longer = ask_more(world.ref, world.state, world.ports.artifacts, 3)
    assert longer.audits[: len(AUDITS)] == AUDITS
    assert longer.count == len(AUDITS) + 3
    assert replace(longer, count=sample.count).facts() == sample.facts()
    assert ask_more(world.ref, world.state, world.ports.artifacts, 10**6).count == len(sample)
