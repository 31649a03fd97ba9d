"""``rush import`` into a real Label Studio: what people have on their disks, and what they exported."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ml_backend.adapters.processes.servers import LocalLabelStudio
from ml_backend.bootstrap import Container
from ml_backend.cli.progress import show_report
from ml_backend.controls import parse_label_config
from ml_backend.domain.model import TaskRecord
from ml_backend.operations.projects import import_images
from ml_backend.settings import Settings
from tests.serving import serving

CHOICES = '<Choices name="kind" toName="image"><Choice value="Cat"/><Choice value="Dog"/></Choices>'
CONFIG = f'<View><Image name="image" value="$image"/>{CHOICES}</View>'


def picture(seed: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def images() -> Iterator[str]:
    """The address of a host of images; each path has a picture of its own."""

    class Images(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = picture(sum(self.path.encode()))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *given: object) -> None: ...

    with serving(Images) as address:
        yield address


class World:
    """A project in Label Studio, a folder, and the command."""

    def __init__(self, container: Container, folder: Path, config: str) -> None:
        self.container, self.folder, self.control = container, folder, parse_label_config(config)
        self.studio = container.studio
        made = self.studio.call("POST", "/api/projects/", json={"title": "Import", "label_config": config})
        self.project = int(made["id"])

    def write(self, name: str, content: Any) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    def run(self, source: Path) -> list[str]:
        """What ``rush import`` says, line by line."""
        said = io.StringIO()
        report = import_images(self.container, self.project, source)
        show_report(report, Console(file=said, markup=False, highlight=False, soft_wrap=True))
        return said.getvalue().splitlines()

    @property
    def records(self) -> list[TaskRecord]:
        return list(self.studio.records(self.project, self.control))

    def labels(self) -> list[tuple[str, ...]]:
        return sorted(labels for r in self.records for labels in [a.labels for a in r.annotations] or [()])


Make = Callable[..., World]


@pytest.fixture(scope="module")
def container(
    label_studio: LocalLabelStudio, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    settings = Settings(
        _env_file=None,
        LABEL_STUDIO_URL=label_studio.url,
        LABEL_STUDIO_API_KEY=label_studio.token,
        redis_url=redis_url,
        data_dir=tmp_path_factory.mktemp("data"),
        allowed_hosts="127.0.0.1",
    )
    made = Container(settings)
    yield made
    made.close()
    made.state.close()  # type: ignore[attr-defined]


@pytest.fixture
def make(container: Container, tmp_path: Path) -> Make:
    return lambda config=CONFIG: World(container, tmp_path, config)


def test_a_folder_with_suffixes_and_names_that_label_studio_does_not_take(make: Make) -> None:
    world = make()
    world.write("IMG_0001.JPG", picture(1, "JPEG"))
    world.write("from_windows.jfif", picture(2, "JPEG"))
    world.write("dog [copy].png", picture(3))
    world.write("again.png", picture(3))
    world.write("no_end.jpg", picture(4, "JPEG")[:-2])
    world.write("cat [copy].txt", b"")
    world.write(f"{'long name ' * 20}.png", picture(5))
    said = world.run(world.folder)
    assert said[-1].startswith("5 images imported, 1 there already, 1 skipped")
    assert said[0] == "skipped cat [copy].txt: Not an image: .txt."
    assert [world.studio.download(str(r.task.data["image"])) for r in world.records]
    assert world.run(world.folder)[-1].startswith("0 images imported, 6 there already, 1 skipped")


def test_several_questions_about_one_image(make: Make) -> None:
    world = make(CONFIG.replace("<Choices", '<Text name="q" value="$question"/><Choices', 1))
    names = [f"v{n}.png" for n in range(3)]
    for n, name in enumerate(names):
        world.write(name, picture(n))
    out = io.StringIO()
    questions = ("Is there a cat?", "Is it outdoors?", "Is text visible?")
    csv.writer(out).writerows([("image", "question"), *((n, q) for n in names for q in questions)])
    source = world.write("questions.csv", out.getvalue().encode())
    assert world.run(source)[-1].startswith("9 images imported, 0 there already, 0 skipped")
    assert len({(r.task.data["image"], r.task.data["question"]) for r in world.records}) == 9
    assert world.run(source)[-1].startswith("0 images imported, 9 there already, 0 skipped")


def test_a_row_that_label_studio_refuses_is_named_and_the_others_come_in(make: Make, images: str) -> None:
    world = make(CONFIG.replace("<Choices", '<Text name="q" value="$question"/><Choices', 1))
    rows = [{"image": f"{images}/{n}.png", "question": "?"} for n in range(4)]
    del rows[2]["question"]
    said = world.run(world.write("rows.json", rows))
    assert said[-1].startswith("3 images imported, 0 there already, 1 skipped")
    assert said[0].startswith("skipped rows.json task 3:")
    assert '"question" key is expected' in said[0]
    assert len(said[0]) <= 200


def test_numbers_that_are_none_and_text_that_can_not_be_sent(make: Make) -> None:
    world = make()
    world.write("n0.png", picture(0))
    world.write("n1.png", picture(1))
    rows = ('"n0.png", "weight": 3.5', '"n1.png", "weight": NaN', '"n1.png", "x": "\\ud800"')
    text = ", ".join(f'{{"image": {row}}}' for row in rows)
    said = world.run(world.write("pandas.json", f"[{text}]".encode()))
    assert said[-1].startswith("2 images imported, 0 there already, 1 skipped")
    assert {r.task.data["weight"] for r in world.records} == {3.5, None}


def test_lists_of_images_and_images_inside_of_objects(make: Make, images: str) -> None:
    world = make(CONFIG.replace('value="$image"', 'valueList="$images"'))
    lists = [
        [f"{images}/0.png", f"{images}/1.png"],
        [f"{images}/0.png"],
        [f"{images}/0.png", f"{images}/2.png"],
    ]
    source = world.write("lists.json", [{"data": {"images": each}} for each in lists])
    assert world.run(source)[-1].startswith("3 images imported")
    assert sorted(r.task.data["images"] for r in world.records) == sorted(lists)
    assert world.run(source)[-1].startswith("0 images imported, 3 there already")

    world = make(CONFIG.replace("$image", "$product.photo"))
    products = [{"photo": f"{images}/{n}.png", "sku": n} for n in range(2)]
    source = world.write("nested.json", [{"data": {"product": each}} for each in products])
    assert world.run(source)[-1].startswith("2 images imported")
    assert sorted((r.task.data["product"] for r in world.records), key=lambda p: p["sku"]) == products
    assert world.run(source)[-1].startswith("0 images imported, 2 there already")


@pytest.mark.parametrize("kind", ["JSON", "JSON_MIN", "CSV", "TSV"])
def test_what_label_studio_exports_comes_in_again_with_its_labels(
    make: Make, images: str, kind: str, label_studio: LocalLabelStudio
) -> None:
    first = make()
    answers = ["Cat", "Dog", "Dog"]
    region = {"from_name": "kind", "to_name": "image", "type": "choices"}
    first.studio.import_tasks(
        first.project,
        [
            {
                "data": {"image": f"{images}/{n}.png"},
                "annotations": [{"result": [{**region, "value": {"choices": [name]}}], "lead_time": 4.2}],
                "predictions": [{"model_version": "theirs", "result": [], "score": 0.5}],
            }
            for n, name in enumerate(answers)
        ],
    )
    token = {"Authorization": f"Token {first.studio._http._token._token}"}
    export = first.studio._http.client.get(
        f"{label_studio.url}/api/projects/{first.project}/export",
        params={"exportType": kind},
        headers=token,
    )
    name = {"JSON": "e.json", "JSON_MIN": "e.json", "CSV": "e.csv", "TSV": "e.tsv"}[kind]
    second = make()
    source = second.write(name, export.content)
    said = second.run(source)
    assert said[-1].startswith("3 images imported, 0 there already, 0 skipped"), said
    assert second.labels() == [("Cat",), ("Dog",), ("Dog",)]
    assert {a.lead_time for r in second.records for a in r.annotations} == {4.2}
    assert all(set(r.task.data) == {"image"} for r in second.records)
    assert second.run(source)[-1].startswith("0 images imported, 3 there already")


def test_a_plain_import_of_label_studio_is_recognised(make: Make, images: str) -> None:
    world = make()
    rows = [{"image": f"{images}/{n}.png", "size": n} for n in range(3)]
    world.studio.import_tasks(world.project, [{"data": row} for row in rows])
    rows[1]["size"] = 7
    said = world.run(world.write("rows.json", rows))
    assert said[-1].startswith("1 images imported, 2 there already, 0 skipped")


def test_answers_of_people_who_are_not_there(make: Make, images: str) -> None:
    world = make()
    result = [{"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": ["Cat"]}}]
    who: list[Any] = [9999, {"id": 5, "email": "nobody@x.example"}, None]
    rows = [
        {"data": {"image": f"{images}/{n}.png"}, "annotations": [{"result": result, "completed_by": name}]}
        for n, name in enumerate(who)
    ]
    said = world.run(world.write("rows.json", rows))
    assert said[-1].startswith("3 images imported, 0 there already, 0 skipped")
    assert world.labels() == [("Cat",)] * 3
    assert any("without who answered" in line for line in said)


def test_tables_made_elsewhere(make: Make, images: str) -> None:
    world = make()
    world.write("images/cat 0.png", picture(0))
    world.write("images/cat 1.png", picture(1))
    table = "\ufeffimage,label\nimages\\cat 0.png,Cat\nimages\\cat 1.png,Cat\nC:\\x\\cat.png,Cat\n"
    said = world.run(world.write("made_on_windows.csv", table.encode()))
    assert said[-1].startswith("2 images imported, 0 there already, 1 skipped")
    table = f"image\n{images}/up/w_300,h_200,c_fill/a.png\n{images}/up/w_300,h_200,c_fill/b.png\n"
    assert world.run(world.write("urls.csv", table.encode()))[-1].startswith("2 images imported")
    header, row = '\ufeff"image";"size, in mm";"width, height, depth"', '"images/cat {}.png";"3";"1"'
    table = "\n".join((header, row.format(0), row.format(1)))
    assert world.run(world.write("semicolons.csv", table.encode()))[-1].startswith("2 images imported")
