"""Ingest: every readable image ends up with features, once; the others are reported."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from ml_backend.adapters.files.features import FileFeatures
from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.content_hash import content_key
from ml_backend.domain.errors import BadImage, LabelStudioError
from ml_backend.domain.events import Ingested
from ml_backend.domain.model import ContentKey, ProjectRef, TaskId
from ml_backend.services.embedding import ingest as module
from ml_backend.services.embedding.ingest import IngestReport, ask_again, ingest

REF = ProjectRef("http://127.0.0.1:8080", 3)
DIM = 4


class Images:
    """Addresses → bytes, as Label Studio serves them; counts downloads."""

    origin = REF.origin

    def __init__(self, **files: bytes) -> None:
        self.files, self.asked, self.lock = files, Counter[str](), threading.Lock()

    def download(self, url: str, project: int | None = None) -> bytes:
        with self.lock:
            self.asked[url] += 1
        if url not in self.files:
            raise BadImage(f"{url} is not there.", "Check the address.")
        return self.files[url]


class Embedding:
    """Features from the first byte; b"bad…" can't be decoded; dies after ``limit`` images."""

    name, dim = "first-byte", DIM

    def __init__(self, limit: int = 10**9) -> None:
        self.limit = limit
        self.seen: list[str] = []

    def embed(self, images: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Any]]:
        for name, data in images:
            if len(self.seen) >= self.limit:
                raise KeyboardInterrupt
            self.seen.append(name)
            bad = data.startswith(b"bad")
            yield name, BadImage("Not an image.") if bad else np.full(DIM, data[0], np.float32)

    def close(self) -> None: ...


@pytest.fixture
def features(tmp_path: Path) -> FileFeatures:
    return FileFeatures(tmp_path, "first-byte", DIM)


def run(
    tasks: dict[int, str], studio: Any, state: Any, features: Any, embedder: Any, **more: Any
) -> IngestReport:
    numbered = {TaskId(task): address for task, address in tasks.items()}
    return ingest(REF, numbered, studio, state, features, embedder, **more)


def test_good_images_are_embedded_and_bad_ones_reported(state: RedisState, features: FileFeatures) -> None:
    studio = Images(a=b"A", b=b"B", same_as_a=b"A", bad=b"bad image", bad_twin=b"bad image")
    embedder, heard = Embedding(), []
    tasks = {1: "a", 2: "b", 3: "missing", 4: "same_as_a", 5: "bad", 6: "a", 7: "bad_twin"}
    report = run(tasks, studio, state, features, embedder, progress=lambda *told: heard.append(told))
    a, b = content_key(b"A"), content_key(b"B")
    assert report.embedded == {1: a, 2: b, 4: a, 6: a}
    assert set(report.failed) == {3, 5, 7}
    assert "missing is not there" in report.failed[TaskId(3)]
    assert report.failed[TaskId(5)] == report.failed[TaskId(7)] == "Not an image."
    assert state.tasks(REF) == report.embedded
    assert {it.task: it.why for it in state.unread(REF).values()} == {
        3: "missing is not there. Check the address.",
        5: "Not an image.",
        7: "Not an image.",
    }
    assert features.get([a, b])[:, 0].tolist() == [ord("A"), ord("B")]
    assert studio.asked == Counter(["a", "b", "missing", "same_as_a", "bad", "bad_twin"])
    assert len(embedder.seen) == 3
    assert heard[-1] == (7, 7)
    assert heard == sorted(heard)


def test_what_is_known_is_neither_downloaded_nor_embedded_again(
    state: RedisState, features: FileFeatures
) -> None:
    studio, embedder = Images(a=b"A", b=b"B", copy=b"A"), Embedding()
    run({1: "a"}, studio, state, features, embedder)
    report = run({1: "a", 2: "b", 3: "copy"}, studio, state, features, embedder)
    assert set(report.embedded) == {1, 2, 3}
    assert studio.asked == Counter(["a", "b", "copy"])
    assert embedder.seen == [content_key(b"A"), content_key(b"B")]


def test_an_address_whose_features_are_lost_is_embedded_again(
    state: RedisState, features: FileFeatures, tmp_path: Path
) -> None:
    studio = Images(a=b"A")
    run({1: "a"}, studio, state, features, Embedding())
    fresh = FileFeatures(tmp_path / "elsewhere", "first-byte", DIM)
    assert run({1: "a"}, studio, state, fresh, Embedding()).embedded == {1: content_key(b"A")}
    assert content_key(b"A") in fresh


def test_a_killed_run_resumes_after_its_last_chunk(
    state: RedisState, features: FileFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_CHUNK", 2)
    monkeypatch.setattr(module, "CHUNK", 3)
    studio = Images(**{f"i{n}": bytes([n]) for n in range(40)})
    tasks = {n: f"i{n}" for n in range(40)}
    with pytest.raises(KeyboardInterrupt):
        run(tasks, studio, state, features, Embedding(limit=12))
    assert len(state.tasks(REF)) == len(features) == 11  # 2 + 3 · 3
    embedder = Embedding()
    report = run(tasks, studio, state, features, embedder)
    assert len(embedder.seen) == 29
    assert len(report.embedded) == len(state.tasks(REF)) == 40


def test_the_first_images_are_published_early(
    state: RedisState, features: FileFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[Ingested] = []
    monkeypatch.setattr(state, "publish", lambda ref, event: published.append(event))
    number = 400
    studio = Images(**{f"i{n}": n.to_bytes(2, "little") for n in range(number)})
    run({n: f"i{n}" for n in range(number)}, studio, state, features, Embedding())
    sizes = [len(event.tasks) for event in published]
    assert 0 < sizes[0] < 64
    assert sum(sizes) == number
    assert {type(event) for event in published} == {Ingested}


def test_lost_state_is_rebuilt_from_features_without_computing(
    redis_url: str, state: RedisState, features: FileFeatures
) -> None:
    studio = Images(**{f"i{n}": n.to_bytes(2, "little") for n in range(600)})
    tasks = {n: f"i{n}" for n in range(600)}
    run(tasks, studio, state, features, Embedding())
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    embedder = Embedding()
    assert len(run(tasks, studio, state, features, embedder).embedded) == 600
    assert embedder.seen == []
    assert len(state.tasks(REF)) == 600


def test_few_images_are_held_at_once(state: RedisState, features: FileFeatures) -> None:
    studio = Images(**{f"i{n}": n.to_bytes(2, "little") for n in range(200)})
    ahead: list[int] = []

    class Slow(Embedding):
        def embed(self, images: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Any]]:
            for position, (name, _) in enumerate(images):
                ahead.append(studio.asked.total() - position)
                yield name, np.zeros(DIM, np.float32)

    run({n: f"i{n}" for n in range(200)}, studio, state, features, Slow())
    assert max(ahead) <= module.AHEAD + 1


def test_nothing_to_do_is_fine(state: RedisState, features: FileFeatures) -> None:
    assert run({}, Images(), state, features, Embedding()) == IngestReport({}, {})
    assert state.tasks(REF) == {}
    assert ContentKey("0" * 32) not in features


def test_a_new_task_is_judged_by_what_its_address_shows_now(
    state: RedisState, features: FileFeatures
) -> None:
    studio = Images(a=b"A")
    run({1: "a"}, studio, state, features, Embedding())
    studio.files["a"] = b"Z"
    report = run({1: "a", 2: "a"}, studio, state, features, Embedding())
    assert report.embedded == {1: content_key(b"A"), 2: content_key(b"Z")} == state.tasks(REF)
    assert features.get([report.embedded[TaskId(2)]])[0, 0] == ord("Z")


def test_a_task_whose_image_moved_is_read_where_it_is_now(state: RedisState, features: FileFeatures) -> None:
    studio = Images(a=b"A", b=b"B")
    run({1: "a"}, studio, state, features, Embedding())
    assert run({1: "b"}, studio, state, features, Embedding()).embedded == {1: content_key(b"B")}
    assert run({1: "b"}, studio, state, features, Embedding()).embedded == {1: content_key(b"B")}
    assert studio.asked == Counter(["a", "b"])


@pytest.mark.parametrize(
    "error", [KeyError("location"), RuntimeError("odd"), RecursionError(), OSError(5, "x")]
)
def test_whatever_goes_wrong_with_one_image_costs_that_image_only(
    state: RedisState, features: FileFeatures, error: Exception
) -> None:
    class Odd(Images):
        def download(self, url: str, project: int | None = None) -> bytes:
            if url == "odd":
                raise error
            return super().download(url, project)

    report = run({1: "a", 2: "odd", 3: "b"}, Odd(a=b"A", b=b"B"), state, features, Embedding())
    assert set(report.embedded) == {1, 3}
    assert type(error).__name__ in report.failed[TaskId(2)]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_features_that_are_no_numbers_cost_that_image_only(
    state: RedisState, features: FileFeatures, value: float
) -> None:
    class Odd(Embedding):
        def embed(self, images: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Any]]:
            for name, row in super().embed(images):
                yield name, np.full(DIM, value, np.float32) if row[0] == ord("B") else row

    report = run({1: "a", 2: "b", 3: "c"}, Images(a=b"A", b=b"B", c=b"C"), state, features, Odd())
    assert (set(report.embedded), set(report.failed)) == ({1, 3}, {2})


def test_an_image_that_cannot_be_read_waits_longer_after_each_try(
    state: RedisState, features: FileFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    waits = []
    for _ in range(12):
        run({1: "missing"}, Images(), state, features, Embedding())
        (it,) = state.unread(REF).values()
        waits.append(it.next_try - now)
    assert waits == [60, 600, 3600, *[86_400] * 6, *[np.inf] * 3]
    assert run({1: "missing"}, Images(missing=b"A"), state, features, Embedding()).failed == {}
    assert state.unread(REF) == {}


def test_an_image_is_not_blamed_for_a_label_studio_that_does_not_answer(
    state: RedisState, features: FileFeatures
) -> None:
    class Away(Images):
        def download(self, url: str, project: int | None = None) -> bytes:
            raise LabelStudioError("Label Studio can't be reached.")

    assert set(run({1: "a"}, Away(), state, features, Embedding()).failed) == {1}
    assert state.unread(REF) == {}


class Killed(BaseException):
    """What the kernel does to a worker: no code of ours runs afterwards."""


class Deadly(Embedding):
    """Dies of some images; what it takes in at once dies together."""

    def embed(self, images: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Any]]:
        left = iter(images)
        while taken := list(islice(left, 8)):
            if any(data.startswith(b"deadly") for _, data in taken):
                raise Killed
            yield from super().embed(taken)


def test_what_kills_workers_is_passed_over_and_all_others_are_embedded(
    state: RedisState, features: FileFeatures
) -> None:
    studio = Images(**{f"i{n}": bytes([n]) for n in range(60)}, one=b"deadly 1", two=b"deadly 2")
    tasks = {n: f"i{n}" for n in range(60)} | {20: "one", 41: "two"}
    deaths = 0
    for _ in range(10):
        try:
            report = run(tasks, studio, state, features, Deadly())
            break
        except Killed:
            deaths += 1
    assert deaths == 4, "two for each: one among others, one alone"
    assert set(report.embedded) == set(range(60)) - {20, 41}
    assert report.failed == dict.fromkeys([20, 41], "Reading it killed a worker 2 times.")
    assert {it.task: it.next_try for it in state.unread(REF).values()} == {20: np.inf, 41: np.inf}
    assert run(tasks, studio, state, features, Deadly()).failed == report.failed, "for good"
    ask_again(REF, state)
    assert state.unread(REF) == {}
    with pytest.raises(Killed):  # a person asked: one more each
        run({20: "one"}, studio, state, features, Deadly())
    studio.files["one"] = b"mended"
    assert set(run({20: "one"}, studio, state, features, Deadly()).failed) == {20}
    ask_again(REF, state)
    assert set(run({20: "one"}, studio, state, features, Deadly()).embedded) == {20}
    assert set(state.suspects(REF).values()) == {1}


def test_a_worker_that_is_killed_for_another_reason_costs_no_image(
    state: RedisState, features: FileFeatures
) -> None:
    studio = Images(**{f"i{n}": bytes([n]) for n in range(40)})
    tasks = {n: f"i{n}" for n in range(40)}
    with pytest.raises(KeyboardInterrupt):
        run(tasks, studio, state, features, Embedding(limit=5))
    assert set(run(tasks, studio, state, features, Embedding()).embedded) == set(range(40))
    assert state.suspects(REF) == {}
