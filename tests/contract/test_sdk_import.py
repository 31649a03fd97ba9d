"""The command line's way into Label Studio, against a real one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.adapters.label_studio.task_sink import SdkSink
from ml_backend.adapters.processes.servers import LocalLabelStudio
from ml_backend.controls import Choices
from ml_backend.domain.errors import LabelStudioError
from ml_backend.domain.model import EMPTY
from ml_backend.wire import coordinates, prediction, score_of

CONFIG = """<View><Image name="image" value="$image"/>
<Choices name="kind" toName="image"><Choice value="cat"/><Choice value="dog"/></Choices></View>"""
SPEC = Choices("kind", "image", "image", ("cat", "dog"))


@pytest.fixture(scope="module")
def studio(label_studio: LocalLabelStudio) -> Iterator[HttpLabelStudio]:
    client = HttpLabelStudio(label_studio.url, label_studio.token)
    yield client
    client.close()


@pytest.fixture(scope="module")
def sink(label_studio: LocalLabelStudio, studio: HttpLabelStudio) -> Iterator[SdkSink]:
    made = SdkSink(label_studio.url, label_studio.token, studio)
    yield made
    made.close()


@pytest.fixture
def project(studio: HttpLabelStudio) -> int:
    return int(studio.call("POST", "/api/projects/", json={"title": "sink", "label_config": CONFIG})["id"])


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 8), shade).save(out, "PNG")
    return out.getvalue()


def test_one_request_makes_tasks_with_map_identity_and_place(
    sink: SdkSink, studio: HttpLabelStudio, project: int
) -> None:
    places = {0: -3.0, 2: 7.0}
    bodies = [
        {
            "data": {"image": f"/data/upload/{n}.png", "rush_x": n / 10},
            "meta": {"rush": coordinates(n / 10, 0.5, n, 4, f"{n:032x}")},
            "predictions": [prediction(SPEC, EMPTY, places[n])] if n in places else [],
        }
        for n in range(4)
    ]
    ids = sink.import_tasks(project, bodies)
    records = {record.task.id: record for record in studio.records(project)}
    assert [records[task].task.data for task in ids] == [body["data"] for body in bodies]
    assert [records[task].task.meta for task in ids] == [body["meta"] for body in bodies]
    found = {n: [row.score for row in records[task].predictions] for n, task in enumerate(ids)}
    assert found == {0: [-3.0], 1: [], 2: [7.0], 3: []}
    assert 0 <= score_of(-3.0) < score_of(7.0) <= 1


def test_uploads_come_back_in_order_with_their_bytes_and_make_no_task(
    sink: SdkSink, studio: HttpLabelStudio, project: int, tmp_path: Path
) -> None:
    names = ["b.png", "a.png", "same.png", "übung 1.png", "c.png", *(f"{n}.png" for n in range(8))]
    files = []
    for shade, name in enumerate([*names, "more/same.png"]):
        files.append(tmp_path / name)
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_bytes(picture(shade))
    addresses = sink.upload(project, files)
    assert [studio.download(address) for address in addresses] == [file.read_bytes() for file in files]
    assert list(studio.records(project)) == []


def test_a_folder_below_the_document_root_is_served_through_one_storage(
    sink: SdkSink, studio: HttpLabelStudio, label_studio: LocalLabelStudio, project: int
) -> None:
    folder = label_studio.files_root / "sink"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "it.png").write_bytes(picture(1))
    sink.ensure_storage(project, folder)
    sink.ensure_storage(project, folder)
    sink.ensure_storage(project, folder / "sub")
    storages = studio.call("GET", "/api/storages/localfiles", params={"project": project})
    assert [storage["path"] for storage in storages] == [str(folder)]
    assert studio.download("/data/local-files/?d=sink/sub/it.png") == picture(1)


def test_a_folder_that_may_not_be_served_is_named_with_the_way_out(sink: SdkSink, project: int) -> None:
    with pytest.raises(LabelStudioError, match="DOCUMENT_ROOT"):
        sink.ensure_storage(project, Path("/etc"))
