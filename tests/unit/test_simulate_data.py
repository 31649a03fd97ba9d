"""What can be simulated on, and what an answer costs there."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ml_backend.bootstrap import Container
from ml_backend.cli.main import main
from ml_backend.domain.errors import BadRequest
from ml_backend.domain.model import Annotation, AnnotationId, TaskId
from ml_backend.domain.provenance import mark
from ml_backend.services.queue.pace import own_minutes
from ml_backend.settings import Settings
from ml_backend.simulation.data import prepare
from ml_backend.simulation.runner import cost_of, minutes_for
from strategies.cost import Answer

pytestmark = pytest.mark.slow


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(Settings(_env_file=None, data_dir=tmp_path / "rush", device="cpu", image_size=64))


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, 255 - shade, 40)).save(out, "PNG")
    return out.getvalue()


def chosen(label: str, **more: Any) -> dict[str, Any]:
    region = {"type": "choices", "from_name": "c", "to_name": "i", "value": {"choices": [label]}}
    return {"id": 1, "completed_by": 1, "result": [region], "was_cancelled": False} | more


def labels_of(path: Path) -> list[str]:
    with np.load(path) as found:
        assert len(found["features"]) == len(found["labels"])
        labels: list[str] = found["labels"].tolist()
    return labels


def test_what_can_not_be_simulated_on_is_named(tmp_path: Path, container: Container) -> None:
    np.savez(tmp_path / "x.npz", pictures=np.zeros(3))
    with pytest.raises(BadRequest, match=r"x\.npz holds pictures"):
        prepare(tmp_path / "x.npz", tmp_path, container, lambda *_: None)
    (tmp_path / "a.txt").touch()
    with pytest.raises(BadRequest, match="Can't simulate on"):
        prepare(tmp_path / "a.txt", tmp_path, container, lambda *_: None)


def test_images_that_can_not_be_read_are_named_the_second_time_too(
    tmp_path: Path, container: Container
) -> None:
    for label, shade in (("cat", 10), ("dog", 200)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / "good.png").write_bytes(picture(shade))
    (tmp_path / "photos" / "cat" / "broken.png").write_bytes(b"no picture")
    for _ in range(2):
        found = prepare(tmp_path / "photos", tmp_path / "out", container, lambda *_: None)
        assert labels_of(found.path) == ["cat", "dog"]
        assert len(found.left_out) == 1
        assert "cat/broken.png" in found.left_out[0]


def test_an_export_gives_what_people_answered_and_names_the_rest(
    tmp_path: Path, container: Container
) -> None:
    for n in range(5):
        (tmp_path / f"{n}.png").write_bytes(picture(40 * n))
    machine = chosen("cat")
    machine["result"] = mark(machine["result"], "1.abc")
    annotations: list[list[dict[str, Any]]] = [
        [chosen("cat")],
        [chosen("cat", created_at="1"), chosen("dog", id=2, created_at="2")],
        [chosen("cat", was_cancelled=True)],
        [machine],
        [],
    ]
    rows = [
        {"id": n, "data": {"image": f"{n}.png"}, "annotations": found} for n, found in enumerate(annotations)
    ]
    (tmp_path / "export.json").write_text(json.dumps(rows))
    found = prepare(tmp_path / "export.json", tmp_path / "out", container, lambda *_: None)
    assert labels_of(found.path) == ["cat", "dog"]
    assert len(found.left_out) == 3
    assert all("no single label" in line for line in found.left_out)


def test_only_one_of_several_controls_counts(tmp_path: Path, container: Container) -> None:
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(picture(100 * n))
    both = [chosen(label) for label in ("cat", "dog")]
    for annotation in both:
        other = {"type": "choices", "from_name": "light", "to_name": "i", "value": {"choices": ["dark"]}}
        annotation["result"].append(other)
    rows = [{"id": n, "data": {"image": f"{n}.png"}, "annotations": [both[n]]} for n in range(2)]
    (tmp_path / "export.json").write_text(json.dumps(rows))
    found = prepare(tmp_path / "export.json", tmp_path, container, lambda *_: None)
    assert (labels_of(found.path), found.left_out) == (["cat", "dog"], [])


def test_a_file_that_may_not_be_read_is_left_out(
    tmp_path: Path, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label, shade in (("cat", 10), ("dog", 200), ("dog", 90)):
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / label / f"{shade}.png").write_bytes(picture(shade))
    read = Path.read_bytes

    def guarded(path: Path) -> bytes:
        if path.name == "90.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    found = prepare(tmp_path / "photos", tmp_path / "out", container, lambda *_: None)
    assert labels_of(found.path) == ["cat", "dog"]
    assert len(found.left_out) == 1
    assert "Permission denied" in found.left_out[0]


def test_simulated_minutes_are_those_of_as_many_answers() -> None:
    steps = [{"labels": 20, "seconds": 60.0}, {"labels": 40, "seconds": 180.0}]
    runs = [
        {"data": "p", "strategy": "rush", "steps": steps},
        {"data": "q", "strategy": "rush", "steps": steps},
    ]
    assert minutes_for(runs, "p", 30) == {"rush": pytest.approx(2.0)}
    assert minutes_for(runs, "p", 41) == {}


def test_json_min_is_an_export_too(tmp_path: Path, container: Container) -> None:
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(picture(100 * n))
    rows = [{"image": f"{n}.png", "id": n, "choice": "ab"[n]} for n in range(2)]
    (tmp_path / "min.json").write_text(json.dumps(rows))
    assert labels_of(prepare(tmp_path / "min.json", tmp_path, container, lambda *_: None).path) == ["a", "b"]


def test_costs_are_published_constant_or_learnt() -> None:
    rng = np.random.default_rng(0)
    answer = Answer("accept", switch=False)
    assert cost_of("published")(answer, rng) == 0.6
    assert cost_of("1.5")(answer, rng) == 1.5
    body = {"answers": [{"kind": "accept"}] * 200, "seconds": [4.0] * 200}
    learnt = cost_of(json.dumps(body))
    assert np.median([learnt(answer, rng) for _ in range(200)]) == pytest.approx(4.0, rel=0.2)


@pytest.mark.parametrize("cost", ["cheap", "-1", "project:x"])
def test_a_cost_that_is_none_is_named(cost: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=np.eye(4, dtype=np.float16), labels=[0, 1, 0, 1])
    arguments = ["simulate", "--data", str(tmp_path / "x.npz"), "--out", str(tmp_path), "--cost", cost]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert f"--cost {cost} is no cost" in result.output


def test_nothing_to_simulate_on_is_named() -> None:
    result = CliRunner().invoke(main, ["simulate"])
    assert result.exit_code == 1
    assert "--data PATH or --project ID" in result.output


def test_a_projects_own_minutes_leave_out_pauses_and_the_machine() -> None:
    times = [1.0, 2.0, 3.0, 2000.0, None]
    made = [
        Annotation(AnnotationId(n), TaskId(n), 1, ("a",), lead_time=seconds, created_at=f"{n}")
        for n, seconds in enumerate(times)
    ]
    made.append(Annotation(AnnotationId(9), TaskId(9), 1, ("a",), lead_time=5.0, machine=True))
    found = own_minutes(made, 1.0, 300)
    assert found is not None
    assert found[0] == 3
    assert found[1] == pytest.approx((6.0 + 3.0) / 60)
    assert own_minutes([], 1.0, 300) is None


def test_folders_of_one_name_and_new_images_are_embedded_anew(tmp_path: Path, container: Container) -> None:
    for place, names in (("one", ("cat", "dog")), ("two", ("car", "bus"))):
        for shade, label in enumerate(names):
            (tmp_path / place / "train" / label).mkdir(parents=True)
            (tmp_path / place / "train" / label / "a.png").write_bytes(picture(100 * shade))
    first = prepare(tmp_path / "one" / "train", tmp_path / "out", container, lambda *_: None)
    second = prepare(tmp_path / "two" / "train", tmp_path / "out", container, lambda *_: None)
    assert labels_of(first.path) == ["cat", "dog"]
    assert labels_of(second.path) == ["bus", "car"]
    (tmp_path / "one" / "train" / "cat" / "b.png").write_bytes(picture(50))
    more = prepare(tmp_path / "one" / "train", tmp_path / "out", container, lambda *_: None)
    assert labels_of(more.path) == ["cat", "cat", "dog"]
