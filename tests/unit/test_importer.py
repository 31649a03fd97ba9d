"""Import: every readable image gets into the project once, wherever the run was cut off."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_backend.adapters.files.artifacts import FileArtifacts
from ml_backend.adapters.files.features import FileFeatures
from ml_backend.adapters.redis.state import RedisState
from ml_backend.controls import Choices
from ml_backend.domain.errors import BadImage, BadRequest
from ml_backend.domain.model import ProjectRef, Task, TaskId, TaskRecord
from ml_backend.services.datasets import importer
from ml_backend.services.datasets.importer import Importer
from ml_backend.services.datasets.sources import read_source
from ml_backend.services.learning.rounds import Learner
from ml_backend.settings import Settings
from ml_backend.wire import annotation

REF = ProjectRef("http://127.0.0.1:8080", 3)
SPEC = Choices("choice", "image", "image", ("cat", "dog"))
DIM = 64


class Studio:
    """A Label Studio in memory: both ways, in and out."""

    origin = REF.origin

    def __init__(self) -> None:
        self.made: list[Mapping[str, Any]] = []

    def records(self, project: int, control: object = None) -> Iterator[TaskRecord]:
        for n, task in enumerate(self.made, 1):
            found = [annotation({"id": n, "task": n, **row}, control) for row in task.get("annotations", ())]
            yield TaskRecord(Task(TaskId(n), task["data"], task["meta"]), tuple(found), ())

    def ensure_storage(self, project: int, folder: Path) -> None: ...

    def upload(self, project: int, files: Sequence[Path]) -> list[str]:
        return [f"/data/upload/{file.name}" for file in files]

    def import_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[TaskId]:
        self.made += tasks
        return [TaskId(len(self.made) - len(tasks) + n) for n in range(1, len(tasks) + 1)]

    def close(self) -> None: ...


class Embedding:
    """Features drawn from the first byte; b"bad…" can't be decoded."""

    name, dim = "first-byte", DIM

    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, images: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Any]]:
        for name, data in images:
            self.seen.append(name)
            drawn = np.random.default_rng(data[0]).normal(size=DIM).astype(np.float32)
            yield name, BadImage("Not an image.") if data.startswith(b"bad") else drawn

    def close(self) -> None: ...


@pytest.fixture
def make(state: RedisState, tmp_path: Path) -> Any:
    features = FileFeatures(tmp_path / "features", "first-byte", DIM)
    artifacts = FileArtifacts(tmp_path / "artifacts")

    def made(studio: Any, embedding: Any, **more: Any) -> Importer:
        from ml_backend.services.learning.rounds import PrincipalProjector

        learner: Any = Learner(state, artifacts, features, "first-byte", lambda: None, PrincipalProjector)  # type: ignore[arg-type,return-value]
        settings = Settings(window=10, **more.pop("settings", {}))
        return Importer(
            REF, SPEC, settings, studio, studio, state, features, learner, lambda: embedding, **more
        )

    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    for n in range(40):
        (made / f"{n}.png").write_bytes(bytes([n]) * 9)
    return made


def test_bad_files_are_listed_and_copies_left_out(make: Any, folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"bad")
    (folder / "copy.png").write_bytes(bytes([7]) * 9)
    (folder / "note.txt").touch()
    studio, embedding = Studio(), Embedding()
    report = make(studio, embedding).run(read_source(folder))
    assert (report.imported, report.duplicates) == (40, 1)
    assert {name for name, _ in report.skipped} == {"bad.png", "note.txt"}
    again = make(studio, embedding).run(read_source(folder))
    assert (again.imported, len(studio.made)) == (0, 40)
    scores = [task["predictions"][0]["score"] for task in studio.made if task["predictions"]]
    assert len(scores) == 10
    assert scores == sorted(set(scores))


@pytest.mark.parametrize("stage", ["Embedding", "Laying out the map", "Uploading", "Importing"])
def test_a_run_cut_off_at_any_stage_goes_on(make: Any, folder: Path, stage: str) -> None:
    studio, embedding = Studio(), Embedding()

    def stop(at: str, done: int, total: int) -> None:
        if at == stage and done >= total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(studio, embedding, progress=stop).run(read_source(folder))
    make(studio, embedding).run(read_source(folder))
    assert len({task["meta"]["rush"]["key"] for task in studio.made}) == len(studio.made) == 40
    assert len(embedding.seen) - len(set(embedding.seen)) <= 1


@pytest.mark.parametrize("coordinates", ["meta", "data", "off"])
def test_every_task_carries_its_identity(make: Any, folder: Path, coordinates: str) -> None:
    studio = Studio()
    make(studio, Embedding(), settings={"coordinates": coordinates}).run(read_source(folder))
    assert all(len(task["meta"]["rush"]["key"]) == 32 for task in studio.made)


def test_an_empty_folder_is_said_to_be_empty(make: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRequest, match="nothing to import"):
        make(Studio(), Embedding()).run(read_source(tmp_path / "empty"))


def test_a_file_that_is_too_large_is_skipped_and_named(make: Any, folder: Path) -> None:
    (folder / "huge.png").write_bytes(b"x" * 2_000_000)
    studio = Studio()
    report = make(studio, Embedding(), settings={"max_image_mb": 1.0}).run(read_source(folder))
    assert (report.imported, [name for name, _ in report.skipped]) == (40, ["huge.png"])
    assert "RUSH_MAX_IMAGE_MB" in report.skipped[0][1]


def test_labelled_rows_come_last_without_a_place_in_the_queue(
    make: Any, folder: Path, state: RedisState
) -> None:
    result = [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}]
    rows: list[dict[str, Any]] = [{"data": {"image": f"{n}.png", "site": "x"}} for n in range(40)]
    for row in rows[:5]:
        row["annotations"] = [{"result": result}]
        row["predictions"] = [{"model_version": "rush", "result": result, "score": 0.1}]
    for row in rows[5:10]:
        row["predictions"] = [{"model_version": "theirs", "result": result, "score": 0.1}]
    (folder / "tasks.json").write_text(json.dumps(rows))
    studio = Studio()
    assert make(studio, Embedding()).run(read_source(folder / "tasks.json")).imported == 40
    labelled = [n for n, task in enumerate(studio.made) if task.get("annotations")]
    assert labelled == [35, 36, 37, 38, 39]
    versions = [[p["model_version"] for p in task["predictions"]] for task in studio.made]
    assert all("rush" not in versions[n] for n in labelled)
    assert sum(found.count("theirs") for found in versions) == 5
    assert sum(found.count("rush") for found in versions) == 10
    assert all(task["data"]["site"] == "x" for task in studio.made)
    assert len(state.annotations(REF)) == 5


def test_an_upload_is_split_before_label_studio_refuses_it(
    make: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "UPLOAD_BYTES", 100)
    sizes: list[int] = []

    class Counting(Studio):
        def upload(self, project: int, files: Sequence[Path]) -> list[str]:
            sizes.append(sum(file.stat().st_size for file in files))
            return super().upload(project, files)

    make(Counting(), Embedding()).run(read_source(folder))
    assert sum(sizes) == 40 * 9
    assert max(sizes) <= 100
    assert len(sizes) == 4


def test_a_table_without_images_is_refused_as_a_whole(tmp_path: Path) -> None:
    table = tmp_path / "people.csv"
    table.write_text("name,age\n" + "".join(f"n{n},{n}\n" for n in range(300)))
    with pytest.raises(BadRequest, match=r"None of the first 100 rows of people.csv has an image"):
        list(read_source(table))
