"""Ingest: every readable image ends up with features, once; the others are reported."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from ml_backend.adapters.files.features import FileFeatures
from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.content_hash import content_key
from ml_backend.domain.errors import BadImage
from ml_backend.domain.events import Ingested
from ml_backend.domain.model import ContentKey, ProjectRef, TaskId
from ml_backend.services.embedding import ingest as module
from ml_backend.services.embedding.ingest import IngestReport, ingest

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
    assert state.keys_of([f"{REF.origin} same_as_a", f"{REF.origin} bad"]) == [a, None]
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
