"""A label config that changes while people label: no wrong suggestion, nothing lost without a word."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend import jobs
from ml_backend.adapters.files.features import FileFeatures
from ml_backend.adapters.models.trainer_torch import TorchTrainer
from ml_backend.adapters.redis.state import RedisState
from ml_backend.bootstrap import Container
from ml_backend.controls import Control, control_of, parse_label_config
from ml_backend.domain.errors import BadRequest, UnusableConfig
from ml_backend.domain.events import ControlChosen, GenerationPublished
from ml_backend.domain.generation import Generation, Pca
from ml_backend.domain.label_config import choices_config
from ml_backend.domain.model import SPACE_DIM, Annotation, AnnotationId, ProjectRef, Task, TaskId, TaskRecord
from ml_backend.services.connecting import question
from ml_backend.services.learning.rounds import Learner, PrincipalProjector
from ml_backend.services.learning.train import TrainOutcome
from ml_backend.services.queue.columns import WHOLE
from ml_backend.services.queue.pool import ProjectPool
from ml_backend.services.queue.suggest import all_probabilities, suggest
from ml_backend.services.serving.maintenance import Maintenance
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings
from ml_backend.wire import annotation
from tests.fakes import CONFIG, MULTIPLE, FakeJobs, World, key_of, points

RENAMED = CONFIG.replace('"b"', '"hound"')
SEVERAL_RENAMED = MULTIPLE.replace('"b"', '"hound"')
USELESS = '<View><Image name="image" value="$image"/></View>'


def learner(world: World) -> Learner:
    trainer = TorchTrainer("cpu")
    return Learner(
        world.state, world.ports.artifacts, world.features, "plain", lambda: trainer, PrincipalProjector
    )


def learn(world: World) -> TrainOutcome:
    outcome = learner(world).learn(world.ref)
    world.project.on_event(GenerationPublished(0))
    return outcome


def labelled(state: RedisState, config: str = CONFIG, count: int = 20) -> World:
    """30 images of three classes, most of them labelled, and one generation."""
    world = World(state, config=config)
    for task in world.tasks[:count]:
        world.answer(task)
    outcome = learn(world)
    assert outcome.generation is not None
    assert outcome.generation.head is not None
    return world


def shown(world: World) -> dict[TaskId, tuple[str, ...]]:
    """What is preselected on each open task."""
    pool = world.project.pool
    tasks = [task for task in world.tasks if pool.is_open(task)]
    said = world.project.predictions([Task(task, {}) for task in tasks])
    return {
        task: tuple(label for region in each["result"] for label in region["value"]["choices"])
        for task, each in zip(tasks, said, strict=True)
    }


def trainings(world: World) -> int:
    return sum(job == "train" for job, _ in world.jobs.asked)


@pytest.mark.parametrize("suggester", ["knn-raw", "knn-head", "head", "blend"])
@pytest.mark.parametrize(("config", "renamed"), [(CONFIG, RENAMED), (MULTIPLE, SEVERAL_RENAMED)])
def test_no_image_of_a_class_that_is_gone_has_another_one_preselected(
    state: RedisState, config: str, renamed: str, suggester: str
) -> None:
    world = labelled(state, config)
    now = world.ports.artifacts.generation(world.ref)
    world.ports.artifacts.publish_generation(
        world.ref, Generation(**{n: getattr(now, n) for n in now.__slots__} | {"suggester": suggester})
    )
    world.project.configured(renamed)
    world.project.on_event(GenerationPublished(0))
    for _ in range(2):  # by the old head, and by one that never saw the class that is gone
        for task, labels in shown(world).items():
            assert labels == (() if world.label_of(task) == "b" else (world.label_of(task),))
        learn(world)


def test_answers_under_a_name_that_is_gone_are_counted_and_told(
    state: RedisState, caplog: pytest.LogCaptureFixture
) -> None:
    world = labelled(state)
    world.project.configured(RENAMED)
    report = world.project.report()
    lost = sum(world.label_of(task) == "b" for task in world.tasks[:20])
    assert report["lost_answers"] == {"b": lost}
    line = f"{lost} answers have a class that the label config no longer has: b ({lost})"
    assert report["warnings"] == [line]
    assert line in caplog.text


@pytest.mark.parametrize(("config", "renamed"), [(CONFIG, RENAMED), (MULTIPLE, SEVERAL_RENAMED)])
def test_answers_under_a_name_that_is_gone_teach_nothing(
    state: RedisState, config: str, renamed: str
) -> None:
    world = World(state, config=config)
    for task in world.tasks:
        world.answer(task)
    world.project.configured(renamed)
    known = learner(world).labelled(world.ref)
    assert len(known.tasks) == 20
    assert not any(world.label_of(task) == "b" for task in known.tasks)


def test_an_answer_of_which_one_name_is_gone_is_left_out_whole(state: RedisState) -> None:
    world = World(state, config=MULTIPLE)
    state.set_annotations(world.ref, [Annotation(AnnotationId(1), TaskId(1), 1, ("a", "b"), created_at="t")])
    world.project.configured(SEVERAL_RENAMED)
    assert learner(world).labelled(world.ref).tasks == []


def test_a_class_under_its_new_name_keeps_its_answers_and_its_suggestions(state: RedisState) -> None:
    world = labelled(state)
    world.project.configured(RENAMED)
    control = question.ask(world.ref, state, RENAMED, None, ["b=hound"])
    assert control.renames == (("b", "hound"),)
    world.project.on_event(ControlChosen())
    names = {"a": "a", "b": "hound", "c": "c"}
    for _ in range(2):
        assert shown(world) == {task: (names[world.label_of(task)],) for task in shown(world)}
        assert world.project.report()["lost_answers"] == {}
        learn(world)
    assert len(learner(world).labelled(world.ref).tasks) == 20


@pytest.mark.parametrize(
    ("renames", "became"),
    [
        (["b=hound"], {"b": "hound"}),
        (["b=x", "x=hound"], {"b": "hound", "x": "hound"}),
        (["x=hound", "x=", "b=a"], {"b": "a"}),
        (["b=hound", "b=c"], {"b": "c"}),
    ],
)
def test_renames_lead_to_a_class_over_any_number_of_steps(
    state: RedisState, renames: list[str], became: dict[str, str]
) -> None:
    control = question.ask(ProjectRef("http://studio", 1), state, RENAMED, None, renames)
    assert {old: control.current([old])[0] for old in became} == became


@pytest.mark.parametrize(
    "renames",
    [["a=c"], ["b=nothing"], ["b=x", "x=b"], ["b"], ["=b"], ["b="], ["x=b"], ["a=hound", "hound=a"]],
)
def test_renames_that_lead_nowhere_are_refused_and_nothing_is_kept(
    state: RedisState, renames: list[str]
) -> None:
    ref = ProjectRef("http://studio", 1)
    with pytest.raises(BadRequest) as caught:
        question.ask(ref, state, RENAMED, None, renames)
    assert caught.value.field == "rename"
    assert not state.options(ref).get("renames")


def test_a_class_that_came_back_is_itself_again() -> None:
    control = control_of({"label_config": CONFIG, "renames": json.dumps({"b": "a"})})
    assert control.current(["b", "c"]) == ("b", "c")


@pytest.mark.parametrize(("before", "after"), [(CONFIG, MULTIPLE), (MULTIPLE, CONFIG)])
def test_after_single_became_multiple_or_back_a_round_follows_at_once_and_one_label_is_suggested(
    state: RedisState, before: str, after: str
) -> None:
    world = labelled(state, before)
    loop = Maintenance(world.project)
    loop._train()
    world.jobs.asked.clear()
    world.project.configured(after)
    assert all(len(labels) <= 1 for labels in shown(world).values())
    for _ in range(3):
        loop._train()
    assert trainings(world) == 1
    outcome = learn(world)
    assert outcome.generation is not None
    assert outcome.generation.multiple == (after == MULTIPLE)
    assert shown(world) == {task: (world.label_of(task),) for task in shown(world)}
    assert not world.project.outdated


def test_several_answers_are_no_class_where_one_is_asked(state: RedisState) -> None:
    world = World(state, config=MULTIPLE)
    state.set_annotations(world.ref, [Annotation(AnnotationId(1), TaskId(1), 1, ("a", "b"), created_at="t")])
    world.project.configured(CONFIG)
    assert learner(world).labelled(world.ref).tasks == []
    assert world.project.report()["lost_answers"] == {}


def test_another_control_is_asked_for_and_its_answers_are_read_before_they_teach(state: RedisState) -> None:
    ground = (
        '<Choices name="ground" toName="image"><Choice value="a"/><Choice value="sand"/></Choices></View>'
    )
    both = CONFIG.replace("</View>", ground)
    world = labelled(state, both)
    question.ask(world.ref, state, both, "ground", [])
    world.project.on_event(ControlChosen())
    assert world.project.control.from_name == "ground"
    assert set(shown(world).values()) == {()}  # answers of the other one are none of these
    assert world.project.outdated
    with pytest.raises(BadRequest, match="ground") as caught:
        question.ask(world.ref, state, both, "grounds", [])
    assert caught.value.field == "control"


def test_a_config_that_is_of_no_use_for_a_moment_changes_nothing(state: RedisState) -> None:
    world = labelled(state)
    before = shown(world)
    with pytest.raises(UnusableConfig):
        world.project.configured(USELESS)
    assert "nothing to predict" in world.project.report()["warnings"][0]
    assert shown(world) == before
    world.project.configured(CONFIG)
    assert world.project.report()["warnings"] == []


@pytest.mark.parametrize("door", ["setup", "webhook or predict"])
def test_a_useless_config_that_was_noted_gives_way_to_the_next_good_one(state: RedisState, door: str) -> None:
    world = World(state)
    state.set_options(world.ref, label_config=USELESS)
    projects = Projects(world.ports, "http://studio")
    with pytest.raises(UnusableConfig):
        projects.get(1)
    found = projects.connect(1, CONFIG) if door == "setup" else projects.get(1, CONFIG)
    assert found.control.classes == ("a", "b", "c")
    assert projects.get(1) is found


@pytest.mark.parametrize("multiple", [False, True])
def test_ranking_takes_memory_for_what_was_chosen_and_not_for_what_could_be(
    tmp_path: Path, multiple: bool
) -> None:
    names = [f"class {n}" for n in range(11_014)]
    config = choices_config(names)
    config = config.replace('choice="single"', 'choice="multiple"') if multiple else config
    identity = Pca(np.zeros(SPACE_DIM, np.float32), np.eye(SPACE_DIM, dtype=np.float32))
    pool = ProjectPool(ProjectRef("x", 1), parse_label_config(config), Generation(0, "plain", identity))
    features = FileFeatures(tmp_path, "plain", SPACE_DIM)
    tasks = {TaskId(n): key_of(n) for n in range(1, 2601)}
    features.append(list(tasks.values()), points(2600)[0])
    tracemalloc.start()
    pool.add(tasks, features, None)
    chosen = [(names[-1 - n % 300],) for n in range(600)]
    pool.load_annotations(
        Annotation(AnnotationId(n), TaskId(n + 1), 1, labels, created_at="t")
        for n, labels in enumerate(chosen)
    )
    found = all_probabilities(pool, pool.open())
    said = suggest(pool, list(range(600, 2600)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert found.shape == (2600, 300)
    assert peak < 60e6
    assert len(said) == 2000
    assert WHOLE < 300


class Studio:
    """A Label Studio with one project: its label config, and tasks with annotations as it keeps them."""

    origin = "http://studio"

    def __init__(self, label_config: str, results: dict[int, list[dict[str, Any]]]) -> None:
        self.label_config, self.results = label_config, results

    def project(self, project: int) -> dict[str, Any]:
        return {"id": project, "label_config": self.label_config}

    def records(self, project: int, control: Control | None = None) -> Iterator[TaskRecord]:
        for task, result in self.results.items():
            said = annotation({"id": task, "task": task, "result": result, "created_at": "t"}, control)
            yield TaskRecord(Task(TaskId(task), {}), (said,))


def picked(control: str, *labels: str) -> dict[str, Any]:
    return {"type": "choices", "from_name": control, "to_name": "image", "value": {"choices": list(labels)}}


@pytest.fixture
def worker(
    state: RedisState, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Container]:
    def made(studio: Studio) -> Container:
        here = Container(Settings(_env_file=None, data_dir=tmp_path, redis_url=redis_url))
        here.__dict__.update(studio=studio, jobs=FakeJobs(), state=state, origin=studio.origin)
        monkeypatch.setattr(jobs, "container", lambda: here)
        return here

    return made


TWO = CONFIG.replace(
    "</View>",
    '<Choices name="ground" toName="image"><Choice value="c"/><Choice value="sand"/></Choices></View>',
)


def test_a_sync_reads_the_chosen_control_wherever_its_answer_stands(
    state: RedisState, worker: Callable[..., Container]
) -> None:
    results = {
        1: [picked("ground", "c"), picked("label", "a")],
        2: [picked("label", "b"), picked("ground", "sand")],
    }
    here = worker(Studio(TWO, results))
    ref = here.ref(1)

    def known() -> list[tuple[str, ...]]:
        return [note.labels for note in state.annotations(ref)]

    jobs.sync(ref)
    assert known() == [("a",), ("b",)]
    question.ask(ref, state, TWO, "ground", [])
    jobs.train(ref)  # before it learns, it reads what it is asked for
    assert known() == [("c",), ("sand",)]
    question.ask(ref, state, TWO, "", [])
    jobs.sync(ref)
    assert known() == [("a",), ("b",)]


def test_a_sync_under_a_useless_config_keeps_the_one_of_before_and_goes_on(
    state: RedisState, worker: Callable[..., Container], caplog: pytest.LogCaptureFixture
) -> None:
    studio = Studio(USELESS, {1: [picked("label", "a")]})
    here = worker(studio)
    ref = here.ref(1)
    with pytest.raises(UnusableConfig):
        jobs.sync(ref)
    assert not state.options(ref).get("label_config")
    state.set_options(ref, label_config=CONFIG)
    jobs.sync(ref)
    assert state.options(ref)["label_config"] == CONFIG
    assert "nothing to predict" in caplog.text
    assert [note.labels for note in state.annotations(ref)] == [("a",)]


def test_a_sync_says_how_many_answers_have_a_name_that_is_gone(
    state: RedisState, worker: Callable[..., Container], caplog: pytest.LogCaptureFixture
) -> None:
    here = worker(Studio(RENAMED, {n: [picked("label", "b" if n < 38 else "a")] for n in range(1, 42)}))
    ref = here.ref(1)
    jobs.sync(ref)
    assert "37 answers have a class that the label config no longer has: b (37)" in caplog.text
    caplog.clear()
    question.ask(ref, state, RENAMED, None, ["b=hound"])
    jobs.sync(ref)
    assert "no longer has" not in caplog.text
    assert {note.labels for note in state.annotations(ref)} == {("a",), ("hound",)}
    question.ask(ref, state, RENAMED, None, ["b="])
    jobs.train(ref)
    assert {note.labels for note in state.annotations(ref)} == {("a",), ("b",)}
