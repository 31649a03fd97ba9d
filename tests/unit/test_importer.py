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
from ml_backend.domain.errors import BadImage, BadRequest, Refused
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
        self.files: dict[str, bytes] = {}

    def records(self, project: int, control: object = None) -> Iterator[TaskRecord]:
        for n, task in enumerate(self.made, 1):
            found = [annotation({"id": n, "task": n, **row}, control) for row in task.get("annotations", ())]
            yield TaskRecord(Task(TaskId(n), task["data"], task["meta"]), tuple(found), ())

    def ensure_storage(self, project: int, folder: Path) -> None: ...

    def upload(self, project: int, files: Sequence[Path]) -> list[str]:
        placed = {f"/data/upload/{file.name}": file.read_bytes() for file in files}
        self.files |= placed
        return [*placed]

    def import_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[TaskId]:
        self.made += tasks
        return [TaskId(len(self.made) - len(tasks) + n) for n in range(1, len(tasks) + 1)]

    def download(self, address: str, project: int | None = None) -> bytes:
        return self.files[address]

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


# ---- what makes two tasks the same


def write(folder: Path, name: str, rows: Any) -> Path:
    (folder / name).write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return folder / name


def run(make: Any, studio: Any, source: Path, key: str = "image", **more: Any) -> Any:
    return make(studio, Embedding(), **more).run(read_source(source, key))


def test_one_image_with_several_questions_gives_several_tasks(make: Any, folder: Path) -> None:
    questions = ("Is there a cat?", "Is it outdoors?", "Is text visible?")
    lines = [f"{n}.png,{question}" for n in range(3) for question in questions]
    source = write(folder, "questions.csv", "image,question\n" + "\n".join(lines) + "\n" + lines[4] + "\n")
    studio = Studio()
    report = run(make, studio, source)
    assert (report.imported, report.duplicates, report.skipped) == (9, 1, [])
    assert len({(t["data"]["image"], t["data"]["question"]) for t in studio.made}) == 9
    report = run(make, studio, source)
    assert (report.imported, report.duplicates, len(studio.made)) == (0, 10, 9)
    more = write(folder, "more.csv", "image,question\n0.png,Is it a drawing?\n0.png,Is it outdoors?\n")
    assert run(make, studio, more).imported == 1


def test_pairs_with_one_reference_are_different_tasks(make: Any, folder: Path) -> None:
    rows = [{"image": "0.png", "other": f"http://a/{n}.png"} for n in range(4)]
    studio = Studio()
    assert run(make, studio, write(folder, "pairs.json", rows)).imported == 4
    assert run(make, studio, write(folder, "pairs.json", rows)).imported == 0


def test_lists_of_images_are_imported_as_they_are_and_told_apart_by_all(make: Any, folder: Path) -> None:
    spec = Choices("choice", "image", "images", ("cat", "dog"), image_list=True)
    rows = [
        {"images": pair} for pair in (["0.png", "1.png"], ["0.png", "2.png"], ["0.png"], ["0.png", "1.png"])
    ]
    source, studio = write(folder, "lists.json", rows), Studio()

    def importing() -> Any:
        importer = make(studio, Embedding())
        importer.control = spec
        return importer.run(read_source(source, "images"))

    assert (importing().imported, importing().imported) == (3, 0)
    lists = sorted(task["data"]["images"] for task in studio.made)
    assert lists == [[f"/data/upload/{n}.png" for n in at] for at in ([0], [0, 1], [0, 2])]


def test_an_image_inside_of_an_object_stays_there(make: Any, folder: Path) -> None:
    studio, importer = Studio(), None
    rows = [{"data": {"product": {"photo": f"{n}.png", "sku": n}}} for n in range(2)]
    source = write(folder, "nested.json", rows)
    for expected in (2, 0):
        importer = make(studio, Embedding())
        importer.control = Choices("choice", "image", "product.photo", ("cat", "dog"))
        assert importer.run(read_source(source, "product.photo")).imported == expected
    products = sorted((task["data"]["product"] for task in studio.made), key=lambda p: p["sku"])
    assert products == [{"photo": f"/data/upload/{n}.png", "sku": n} for n in range(2)]


def test_tasks_of_a_plain_import_are_recognised_by_their_data(
    make: Any, folder: Path, state: RedisState
) -> None:
    """Label Studio reads a table's numbers as numbers, and its uploads have other addresses."""
    studio = Studio()
    studio.files = {f"/data/upload/1/ab-{n}.png": (folder / f"{n}.png").read_bytes() for n in range(3)}
    studio.import_tasks(
        3, [{"data": {"image": a, "size": n}, "meta": {}} for n, a in enumerate(studio.files)]
    )
    source = write(folder, "table.csv", "image,size\n0.png,0\n1.png,1\n2.png,7\n")
    report = run(make, studio, source)
    assert (report.imported, report.duplicates) == (1, 2)


# ---- one bad thing never ends the rest


class Refusing(Studio):
    """Refuses whatever holds something bad, as a whole, like Label Studio."""

    def __init__(self, bad: Any) -> None:
        super().__init__()
        self.bad, self.requests = bad, 0

    def upload(self, project: int, files: Sequence[Path]) -> list[str]:
        self.requests += 1
        if any(self.bad(file) for file in files):
            raise Refused("a suffix is not supported.")
        return super().upload(project, files)

    def import_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[TaskId]:
        self.requests += 1
        if any(self.bad(task) for task in tasks):
            raise Refused("Error at item 0: a key is expected.")
        return super().import_tasks(project, tasks)


def test_a_task_that_label_studio_refuses_is_named_and_the_rest_goes_in(make: Any, folder: Path) -> None:
    rows = [{"image": f"{n}.png", "n": n} for n in range(40)]
    source = write(folder, "rows.json", rows)
    studio = Refusing(lambda it: not isinstance(it, Path) and it["data"]["n"] in (3, 17))
    report = run(make, studio, source)
    assert (report.imported, len(studio.made)) == (38, 38)
    assert sorted(name for name, _ in report.skipped) == [
        "rows.json task 18: 17.png",
        "rows.json task 4: 3.png",
    ]
    assert {reason for _, reason in report.skipped} == {"Error at item 0: a key is expected."}
    assert {task["data"]["n"] for task in studio.made} == set(range(40)) - {3, 17}


def test_a_file_that_label_studio_refuses_is_named_and_the_rest_goes_in(make: Any, folder: Path) -> None:
    (folder / "13.png").rename(folder / "13.jfif")
    studio = Refusing(lambda it: isinstance(it, Path) and it.suffix == ".jfif")
    report = run(make, studio, folder)
    assert (report.imported, [name for name, _ in report.skipped]) == (39, ["13.jfif"])


def test_where_everything_is_refused_the_import_ends_soon(make: Any, folder: Path) -> None:
    studio = Refusing(lambda it: not isinstance(it, Path))
    with pytest.raises(Refused):
        run(make, studio, folder)
    assert studio.requests < 60


def test_answers_of_people_who_are_not_there_come_in_without_their_names(make: Any, folder: Path) -> None:
    result = [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}]
    answers = [{"result": result, "completed_by": 70 + n} for n in range(2)]
    rows = [{"data": {"image": f"{n}.png"}, "annotations": [answers[n]]} for n in range(2)]
    studio = Refusing(lambda it: "'completed_by': 71" in str(it))
    report = run(make, studio, write(folder, "export.json", rows))
    assert (report.imported, report.skipped) == (2, [])
    assert report.notes == ["1 row: taken without who answered, and without others' predictions."]
    assert all(task["annotations"][0]["result"] == result for task in studio.made)


def test_any_failure_of_one_download_is_that_images_problem(make: Any, folder: Path) -> None:
    class Odd(Studio):
        def download(self, address: str, project: int | None = None) -> bytes:
            if address.endswith("3.png"):
                raise KeyError("location")
            return super().download(address, project)

    studio = Odd()
    studio.files = {f"http://a/{n}.png": bytes([n]) * 9 for n in range(5)}
    report = run(make, studio, write(folder, "urls.json", [{"image": address} for address in studio.files]))
    assert (report.imported, len(report.skipped)) == (4, 1)


# ---- labels that come along


@pytest.mark.parametrize(
    "value", ["cat", {"choices": ["cat"]}, [{"choices": ["cat"]}], '{"choices": ["cat"]}']
)
def test_labels_in_the_controls_column_of_an_export_are_taken(make: Any, folder: Path, value: Any) -> None:
    about = {"id": 1, "annotator": 1, "annotation_id": 41, "created_at": "2025", "lead_time": 4.2}
    studio = Studio()
    report = run(make, studio, write(folder, "min.json", [{"image": "0.png", "choice": value, **about}]))
    [task] = studio.made
    assert SPEC.read(task["annotations"][0]["result"]) == ("cat",)
    assert task["annotations"][0]["lead_time"] == 4.2
    assert task["data"] == {"image": "/data/upload/0.png"}
    assert report.notes == ["1 row: the label in the column 'choice' is taken."]


def test_labels_that_can_not_be_taken_are_said(make: Any, folder: Path) -> None:
    rows = [
        {"image": "0.png", "choice": "horse"},
        {"image": "1.png", "choice": {"choices": ["cat", "dog"]}},
        {"image": "2.png", "choice": {"stars": 3}},
        {"image": "3.png", "choice": None},
    ]
    studio = Studio()
    report = run(make, studio, write(folder, "min.json", rows))
    assert report.imported == 4
    assert not [task for task in studio.made if task.get("annotations")]
    assert len(report.notes) == 3
    assert any("'horse'" in note for note in report.notes)


def test_two_answers_of_one_task_in_an_export_of_a_row_each_make_one_task(make: Any, folder: Path) -> None:
    rows = [{"image": "0.png", "choice": name, "annotation_id": n} for n, name in enumerate(("cat", "dog"))]
    studio = Studio()
    report = run(make, studio, write(folder, "min.json", rows))
    assert (report.imported, len(studio.made[0]["annotations"])) == (1, 2)
    again = run(make, studio, write(folder, "min.json", rows))
    assert again.imported == 0
    assert again.notes == ["2 rows: there already, so the label that it brings is not taken."]
