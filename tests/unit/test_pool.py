"""The live pool: any sequence of events ends where a fresh load of the same annotations ends."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_backend.adapters.files.features import FileFeatures
from ml_backend.adapters.index.exact import ExactIndex
from ml_backend.controls import parse_label_config
from ml_backend.domain.generation import Generation, Head, Pca
from ml_backend.domain.model import SPACE_DIM, Annotation, AnnotationId, LabelState, ProjectRef, TaskId
from ml_backend.services.queue.index_mirror import IndexMirror
from ml_backend.services.queue.pool import ProjectPool
from ml_backend.services.queue.view import view
from tests.fakes import CONFIG, MULTIPLE, key_of, points, states_in

REF = ProjectRef("http://studio", 1)
COUNT = 6
TASKS = {TaskId(n): key_of(n) for n in range(1, COUNT + 1)}
GENERATION = Generation(0, "plain", Pca(np.zeros(SPACE_DIM, np.float32), np.eye(SPACE_DIM, dtype=np.float32)))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> FileFeatures:
    found = FileFeatures(tmp_path_factory.mktemp("features"), "plain", SPACE_DIM)
    found.append(list(TASKS.values()), points(COUNT)[0])
    return found


def pool_of(config: str, generation: Generation = GENERATION) -> ProjectPool:
    pool = ProjectPool(REF, parse_label_config(config), generation)
    pool.mirror = IndexMirror(ExactIndex())
    return pool


def indexed(pool: ProjectPool) -> dict[int, LabelState]:
    """The label state of every task in its index."""
    assert pool.mirror is not None
    return states_in(pool.mirror.index)


def spaces(pool: ProjectPool) -> set[str]:
    """The spaces that its index holds."""
    assert pool.mirror is not None
    return {space for space in ("raw", "head") if pool.mirror.index.vectors(space, list(TASKS))}


def seen(pool: ProjectPool) -> dict[int, object]:
    """What matters of every task that still exists."""
    states = indexed(pool)
    return {
        task: (
            int(pool.states[row]),
            pool.labels_of(row),
            bool(pool.embedded[row]),
            pool.raw[row].tobytes(),
            states.get(task),
        )
        for task, row in pool.row_of.items()
        if pool.has(task)
    }


# (annotation, labels, skipped, machine-made); annotation n belongs to task n % COUNT + 1
answers = st.tuples(
    st.just("answer"),
    st.integers(0, 11),
    st.lists(st.sampled_from(["a", "b", "c", "vanished"]), max_size=3, unique=True),
    st.booleans(),
    st.booleans(),
)
events = st.lists(
    st.one_of(
        answers,
        st.tuples(st.just("delete"), st.integers(0, 11)),
        st.tuples(st.just("task gone"), st.integers(1, COUNT)),
    ),
    max_size=25,
)


@pytest.mark.parametrize("config", [CONFIG, MULTIPLE])
@given(events=events)
@settings(max_examples=80)
def test_any_sequence_of_events_ends_like_a_fresh_load(
    features: FileFeatures, config: str, events: list
) -> None:
    pool, truth, tasks = pool_of(config), {}, dict(TASKS)
    pool.add(TASKS, features, None)
    for kind, number, *rest in events:
        if kind == "answer":
            labels, skipped, machine = rest
            task = TaskId(number % COUNT + 1)
            made = {"created_at": "t", "machine": machine}
            note = Annotation(AnnotationId(number), task, 1, tuple(labels), skipped, **made)
            pool.apply(note)
            if note.task in tasks:
                truth[note.id] = note
        elif kind == "delete":
            pool.forget([AnnotationId(number)])
            truth.pop(number, None)
        else:
            pool.remove([TaskId(number)])
            tasks.pop(number, None)
            truth = {n: note for n, note in truth.items() if note.task != number}
    fresh = pool_of(config)
    fresh.mirror, mirror = None, fresh.mirror
    fresh.add(tasks, features, None)
    fresh.load_annotations(truth.values())
    mirror.build(fresh)
    fresh.mirror = mirror
    assert seen(pool) == seen(fresh)
    assert set(indexed(pool)) == set(indexed(fresh))


@given(cuts=st.lists(st.integers(0, COUNT), max_size=4), late=st.sets(st.sampled_from(sorted(TASKS))))
@settings(max_examples=40)
def test_a_pool_that_grew_equals_one_built_at_once(
    features: FileFeatures, cuts: list[int], late: set[TaskId]
) -> None:
    grown, whole = pool_of(CONFIG), pool_of(CONFIG)
    order = list(TASKS)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), COUNT], strict=True):
        some = order[start:end]
        grown.add({task: "" if task in late else TASKS[task] for task in some}, features, None)
    grown.add({task: TASKS[task] for task in late}, features, None)
    whole.mirror, mirror = None, whole.mirror
    whole.add(TASKS, features, None)
    mirror.build(whole)
    whole.mirror = mirror
    assert seen(grown) == seen(whole)


def test_what_a_machine_made_closes_its_task_and_teaches_nothing(features: FileFeatures) -> None:
    pool = pool_of(CONFIG)
    pool.add(TASKS, features, None)
    pool.apply(Annotation(AnnotationId(1), TaskId(1), 1, ("a",), machine=True))
    assert not pool.open()[pool.row_of[TaskId(1)]]
    assert (pool.labels_of(pool.row_of[TaskId(1)]), indexed(pool)[1]) == ((), LabelState.MACHINE)
    assert (pool.counts()["labelled"], pool.counts()["machine"]) == (0, 1)
    pool.apply(Annotation(AnnotationId(2), TaskId(1), 2, ("b",)))
    assert pool.labels_of(pool.row_of[TaskId(1)]) == ("b",)
    pool.forget([AnnotationId(2)])
    pool.forget([AnnotationId(1)])
    assert pool.counts()["open"] == COUNT


def test_a_deleted_task_that_comes_back_is_open_and_found_again(features: FileFeatures) -> None:
    pool = pool_of(CONFIG)
    pool.add(TASKS, features, None)
    pool.apply(Annotation(AnnotationId(1), TaskId(1), 1, ("a",)))
    pool.remove([TaskId(1)])
    assert not pool.apply(Annotation(AnnotationId(2), TaskId(1), 1, ("a",)))
    pool.add({TaskId(1): TASKS[TaskId(1)]}, features, None)
    assert seen(pool)[1][:3] == (0, (), True)
    assert indexed(pool)[1] == 0


def test_what_changed_since_the_index_was_built_is_marked(features: FileFeatures) -> None:
    pool = pool_of(CONFIG)
    pool.mirror, mirror = None, pool.mirror
    pool.add(TASKS, features, None)
    mirror.build(pool)
    pool.mirror = mirror
    pool.load_annotations([Annotation(AnnotationId(1), TaskId(3), 1, ("b",))])
    mirror.mark_changes(pool)
    assert [indexed(pool)[task] for task in (2, 3)] == [0, 1]


def test_strategies_see_class_names_head_vectors_and_how_right_the_head_was(features: FileFeatures) -> None:
    identity = np.eye(SPACE_DIM, dtype=np.float32)
    head = Head(np.zeros(SPACE_DIM, np.float32), identity, identity[:3], np.zeros(3, np.float32), 6.0, 1.0)
    manifest = {"trained_on": {"judged": [2, 3], "right": [1.0, 0.0]}}
    generation = replace(GENERATION, number=1, head=head, classes=("a", "b", "c"), manifest=manifest)
    pool = pool_of(CONFIG, generation)
    pool.add(TASKS, features, None)
    shown = view(pool, pool.open())
    assert shown.classes == ("a", "b", "c")
    assert shown.agreed is not None
    assert dict(zip(pool.ids[[1, 2]].tolist(), shown.agreed[[1, 2]].tolist(), strict=True)) == {
        2: 1.0,
        3: 0.0,
    }
    assert np.isnan(shown.agreed[[0, 3, 4, 5]]).all()
    assert shown.head is not None
    np.testing.assert_allclose(shown.head, pool.raw, atol=1e-3)


@pytest.mark.parametrize(
    ("space", "suggester", "searched"),
    [
        ("head", "head", {"head"}),
        ("head", "blend", {"head"}),
        ("raw", "head", {"raw"}),
        ("raw", "blend", {"raw"}),
        ("raw", "knn-head", {"raw", "head"}),
        ("head", "knn-raw", {"raw", "head"}),
    ],
)
def test_the_index_holds_what_is_searched_and_no_more(
    features: FileFeatures, space: str, suggester: str, searched: set[str]
) -> None:
    eye = np.eye(SPACE_DIM, dtype=np.float32)
    head = Head(np.zeros(SPACE_DIM, np.float32), eye, eye[:3], np.zeros(3, np.float32), 6.0, 1.0)
    trained = replace(GENERATION, head=head, classes=("a", "b", "c"), space=space, suggester=suggester)
    pool = pool_of(CONFIG, trained)
    pool.add(TASKS, features, None)
    assert spaces(pool) == searched
    pool.mirror.build(pool)
    assert spaces(pool) == searched
    pool.mirror.build(pool, also=frozenset({"raw", "head"}))
    assert spaces(pool) == {"raw", "head"}
