"""The contract of ports.Index, on every engine and against a plain dictionary."""

import contextlib
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Headers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from ml_backend.adapters.index import qdrant as index_qdrant
from ml_backend.adapters.index.cells import CellIndex
from ml_backend.adapters.index.edge import EdgeIndex
from ml_backend.adapters.index.embedded import EmbeddedIndex
from ml_backend.adapters.index.exact import ExactIndex
from ml_backend.adapters.index.qdrant import QdrantIndex
from ml_backend.domain.errors import StoreError
from ml_backend.domain.generation import Array, Floats, normalise
from ml_backend.domain.model import SPACE_DIM, LabelState
from ml_backend.ports import Index

pytestmark = [  # what qdrant-client's local mode says of itself
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]
ENGINES = ("exact", "edge", "cells", "embedded", "qdrant")
OPEN, LABELLED, SKIPPED = LabelState.OPEN, LabelState.LABELLED, LabelState.SKIPPED


def opened(engine: str, folder: Path) -> Index:
    if engine == "exact":
        return ExactIndex()
    if engine == "cells":
        return CellIndex()
    if engine == "embedded":  # two engines that take turns
        return EmbeddedIndex(folder / uuid.uuid4().hex, graph_up_to=3)
    return EdgeIndex(folder / uuid.uuid4().hex) if engine == "edge" else QdrantIndex(":memory:", "http_h_1")


@pytest.fixture(params=ENGINES)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    found = opened(request.param, tmp_path)
    yield found
    found.close()


def rows(count: int, seed: int = 0) -> Floats:
    return normalise(np.random.default_rng(seed).normal(size=(count, SPACE_DIM)))


def fill(index: Index, count: int, *, spaces: tuple[str, ...] = ("raw", "head"), seed: int = 0) -> Array:
    """Tasks 1 … count, their states going round."""
    tasks = np.arange(1, count + 1)
    index.build(tasks, {space: rows(count, seed + n) for n, space in enumerate(spaces)}, tasks % 3)
    return tasks


TASKS = st.lists(st.integers(1, 12), max_size=6, unique=True)
STATES = st.sampled_from(list(LabelState))
OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["build", "upsert"]), TASKS, STATES, st.integers(0, 99), st.booleans()),
    st.tuples(st.just("mark"), TASKS, STATES),
    st.tuples(st.just("delete"), TASKS),
)


@pytest.mark.parametrize("engine", ENGINES)
@given(operations=st.lists(OPERATIONS, max_size=8), k=st.integers(0, 15), seed=st.integers(0, 99))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_answers_as_a_dictionary_does(
    engine: str, operations: list[tuple], k: int, seed: int, tmp_path: Path
) -> None:
    stored_state: dict[int, LabelState] = {}
    stored_vectors: dict[int, dict[str, Floats]] = {}
    with contextlib.closing(opened(engine, tmp_path)) as index:
        for name, tasks, *rest in operations:
            if name == "delete":
                index.delete(tasks)
                for task in tasks:
                    stored_state.pop(task, None)
                    stored_vectors.pop(task, None)
            elif name == "mark":
                index.mark(tasks, *rest)
                stored_state |= {task: rest[0] for task in tasks if task in stored_state}
            else:
                state, origin, both = rest
                spaces = ("raw", "head") if both else ("raw",)
                vectors = {s: rows(len(tasks), origin + n) for n, s in enumerate(spaces)}
                ids, states = np.array(tasks, np.int64), np.full(len(tasks), state, np.int8)
                getattr(index, name)(ids, vectors, states)
                if name == "build":
                    stored_state.clear()
                    stored_vectors.clear()
                for n, task in enumerate(tasks):
                    stored_state[task] = state
                    stored_vectors[task] = {space: found[n] for space, found in vectors.items()}
        assert len(index) == len(stored_state)
        everything = range(15)
        for space in ("raw", "head"):
            known = {t: found[space] for t, found in stored_vectors.items() if space in found}
            stored = index.vectors(space, everything)
            assert stored.keys() == known.keys()
            assert all(np.allclose(stored[task], known[task], atol=1e-5) for task in known)
            for state in LabelState:
                query = rows(1, seed)[0]
                ids, near = index.neighbours(space, query, k, state)
                there = [task for task in known if stored_state[task] == state]
                expected = sorted((float(known[task] @ query) for task in there), reverse=True)[:k]
                assert ids.dtype == np.int64
                assert set(ids.tolist()) <= set(there)
                assert len(set(ids.tolist())) == len(ids)
                assert np.allclose(near, expected, atol=1e-5)
                assert np.allclose(near, [known[task] @ query for task in ids.tolist()], atol=1e-5)


def test_an_index_starts_empty(index: Index) -> None:
    assert len(index) == 0
    assert index.vectors("raw", [1]) == {}
    assert len(index.neighbours("head", rows(1)[0], 5, OPEN)[0]) == 0


def test_nothing_to_do_is_fine(index: Index) -> None:
    fill(index, 5)
    index.upsert(np.empty(0, np.int64), {"raw": rows(0)}, np.empty(0, np.int8))
    index.mark([], LABELLED)
    index.delete([])
    assert index.vectors("raw", []) == {}
    assert len(index) == 5
    index.build(np.empty(0, np.int64), {"raw": rows(0)}, np.empty(0, np.int8))
    assert len(index) == 0


def test_unknown_tasks_among_known_ones_are_left_alone(index: Index) -> None:
    tasks = fill(index, 9)
    index.mark([1, 999, 2], SKIPPED)
    index.delete([3, 999])
    assert len(index) == 8
    found, _ = index.neighbours("raw", rows(1)[0], 50, SKIPPED)
    assert set(found.tolist()) == {1, 2, *tasks[tasks % 3 == SKIPPED].tolist()}


def test_ids_as_large_as_label_studio_has_them_survive(index: Index) -> None:
    large = 2**63 - 1
    index.build(np.array([large]), {"raw": rows(1)}, np.array([LABELLED]))
    assert index.neighbours("raw", rows(1)[0], 5, LABELLED)[0].tolist() == [large]


def test_a_task_is_its_own_nearest_neighbour(index: Index) -> None:
    tasks = fill(index, 300)
    for task in tasks[::37].tolist():
        vector = index.vectors("raw", [task])[task]
        found, near = index.neighbours("raw", vector, 3, LabelState(task % 3))
        assert found[0] == task
        assert near[0] == pytest.approx(1.0, abs=1e-5)
        assert list(near) == sorted(near, reverse=True)


def test_many_batches_arrive_whole(index: Index) -> None:
    tasks = fill(index, 2500, spaces=("raw",))
    stored = index.vectors("raw", tasks.tolist())
    assert np.allclose(np.stack([stored[task] for task in tasks.tolist()]), rows(2500), atol=1e-5)


def test_searches_see_one_build_whole_while_the_next_is_made(index: Index) -> None:
    count, done = 1200, threading.Event()
    fill(index, count)
    failed: list[BaseException] = []
    sizes: list[int] = []

    def search() -> None:
        try:
            while not done.is_set():
                sizes.append(len(index.neighbours("raw", rows(1)[0], count, OPEN)[0]))
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    for seed in range(3):
        fill(index, count, seed=seed)
    done.set()
    thread.join()
    assert failed == []
    assert set(sizes) == {count // 3}


class Interrupting(dict[str, Floats]):
    """Vectors whose reading changes the index: a change in the middle of a build, without a race."""

    def items(self) -> Any:
        if changes:
            changes.pop()()
        return super().items()


changes: list = []


def test_what_changes_during_a_build_is_in_its_result(index: Index) -> None:
    fill(index, 6)

    def change() -> None:
        index.mark([1, 2], LABELLED)
        index.delete([3])
        index.upsert(np.array([50]), {"raw": rows(1, 7)}, np.array([LABELLED]))

    changes.append(change)
    index.build(np.arange(1, 7), Interrupting(raw=rows(6)), np.zeros(6, np.int8))
    assert set(index.neighbours("raw", rows(1)[0], 9, LABELLED)[0].tolist()) == {1, 2, 50}
    assert set(index.neighbours("raw", rows(1)[0], 9, OPEN)[0].tolist()) == {4, 5, 6}


def test_a_failed_build_leaves_the_old_index(index: Index) -> None:
    fill(index, 6)

    def fail() -> None:
        raise KeyboardInterrupt

    changes.append(fail)
    with pytest.raises(KeyboardInterrupt):
        index.build(np.arange(1, 4), Interrupting(raw=rows(3)), np.zeros(3, np.int8))
    assert len(index) == 6
    index.mark([1], SKIPPED)
    fill(index, 4)
    assert len(index) == 4


def test_threads_may_write_and_search_at_once(tmp_path: Path) -> None:
    failed: list[BaseException] = []
    with contextlib.closing(EdgeIndex(tmp_path / "index")) as index:
        fill(index, 3000)

        def work(number: int) -> None:
            try:
                for step in range(30):
                    index.mark([number * 100 + step], SKIPPED)
                    index.upsert(np.array([5000 + number * 100 + step]), {"raw": rows(1)}, np.array([OPEN]))
                    assert len(index.neighbours("raw", rows(1, step)[0], 50, LABELLED)[0]) == 50
            except BaseException as error:  # noqa: BLE001
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        fill(index, 3000, seed=5)
        for thread in threads:
            thread.join()
        assert failed == []
        assert 3000 <= len(index) <= 3000 + 6 * 30  # the build replaces what came before it


def test_the_embedded_engine_keeps_one_folder_and_clears_what_was_left(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    (folder / "left by a killed process").mkdir(parents=True)
    index = EdgeIndex(folder)
    for _ in range(3):
        fill(index, 10)
        assert len(list(folder.iterdir())) == 1
    index.close()
    assert not folder.exists()


@pytest.mark.parametrize(("engine", "count"), [("edge", 21_000), ("cells", 63_000)])
def test_a_graph_and_cells_find_nearly_what_a_scan_finds(engine: str, count: int, tmp_path: Path) -> None:
    """Enough for a graph; a third of them open, enough not to compare them all."""
    tasks, centres = np.arange(1, count + 1), np.repeat(rows(count // 300, 1), 300, axis=0)
    vectors = normalise(centres + 0.1 * rows(count) * np.sqrt(SPACE_DIM))
    with contextlib.closing(opened(engine, tmp_path)) as index:
        index.build(tasks, {"raw": vectors}, tasks % 3)
        queries = vectors[::1000]
        near = queries @ vectors.T
        near[:, tasks % 3 != OPEN] = -2
        hits = 0
        for query, row in enumerate(near):
            best = set(tasks[np.argsort(-row)[:50]].tolist())
            hits += len(best & set(index.neighbours("raw", queries[query], 50, OPEN)[0].tolist()))
        assert hits / (50 * len(near)) > 0.9


def test_a_server_keeps_one_collection_per_project() -> None:
    with contextlib.closing(QdrantIndex(":memory:", "http_h_1")) as index:
        client = index._client
        for abandoned in ("http_h_1.1000.0123abcd", "http_h_11.1000.0123abcd"):
            client.create_collection(abandoned, vectors_config={})
        for _ in range(3):
            fill(index, 10)
        names = [found.name for found in client.get_collections().collections]
        assert sorted(name.split(".")[0] for name in names) == ["http_h_1", "http_h_11"]


def test_no_server_is_said_with_its_address() -> None:
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9 .*RUSH_QDRANT_URL"):
        len(QdrantIndex("http://127.0.0.1:9", "http_h_1"))


def test_a_server_that_is_away_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_qdrant, "WAITS", (0.0, 0.0))
    failures = iter([ResponseHandlingException(OSError("gone")), UnexpectedResponse(503, "", b"", Headers())])

    def request() -> int:
        for failure in failures:
            raise failure
        return 7

    assert index_qdrant.retried(request) == 7

    def refused() -> int:
        asked.append(1)
        raise UnexpectedResponse(401, "", b"", Headers())

    asked: list[int] = []
    with pytest.raises(UnexpectedResponse):
        index_qdrant.retried(refused)
    assert len(asked) == 1
