from __future__ import annotations

import io
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ml_backend.adapters.files.digits import SIDE, write_digits
from ml_backend.adapters.processes.servers import LocalLabelStudio
from ml_backend.cli.progress import ConsoleNarrator
from ml_backend.controls import parse_label_config
from ml_backend.domain.errors import BadRequest, ServerError
from ml_backend.operations.demo import (
    TITLE_LENGTH,
    _free,
    _images,
    _label_config,
    _label_studio_environment,
    _title,
)
from tests.ports import free_port


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    assert write_digits(folder) == 1797
    return folder


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def with_folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_digits_are_pictures_that_a_person_can_read(digits: Path) -> None:
    paths = sorted(digits.rglob("*.png"))
    assert len(paths) == 1797
    assert {path.parent.name for path in paths} == set("0123456789")
    for path in paths[::200]:
        with Image.open(path) as image:
            assert min(image.size) >= SIDE >= 96
            pixels = np.asarray(image.convert("L"))
            assert pixels.max() - pixels.min() > 128, "ink on paper"


def test_the_numbers_of_digits_tell_nothing_of_their_class(digits: Path) -> None:
    label_of = {int(path.stem): int(path.parent.name) for path in digits.rglob("*.png")}
    assert sorted(label_of) == list(range(1797)), "each number once"
    labels = np.array([label_of[number] for number in range(1797)])
    for step in range(1, 11):  # scikit-learn's own order counts: there the next class is known
        follows = (labels[:-step] + step) % 10 == labels[step:]
        assert follows.mean() < 0.15


def test_writing_digits_again_writes_the_missing_ones_only(digits: Path) -> None:
    paths = sorted(digits.rglob("*.png"))
    lost, kept = paths[7], paths[8]
    before, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    assert write_digits(digits) == 1797
    assert lost.read_bytes() == before, "always the same picture under the same name"
    assert kept.stat().st_mtime_ns == stamp
    assert sorted(digits.rglob("*")) == sorted({*paths, *(path.parent for path in paths)}), (
        "nothing is left over"
    )


def test_the_default_label_config_has_the_ten_digits() -> None:
    control = parse_label_config(_label_config(None))
    assert set(control.classes) == set("0123456789")
    assert not control.multiple
    for digit in "0123456789":
        assert f'<Choice value="{digit}" hotkey="{digit}"/>' in _label_config(None)


def test_folder_names_become_classes_whatever_they_contain(tmp_path: Path) -> None:
    images = with_folders(tmp_path, "cat", 'dog & "friend"', "<owl>", ".git")
    assert parse_label_config(_label_config(images)).classes == ("<owl>", "cat", 'dog & "friend"')


def test_the_first_ten_classes_get_a_key_each(tmp_path: Path) -> None:
    config = _label_config(with_folders(tmp_path, *(f"class-{n:02}" for n in range(12))))
    assert [f'value="class-{n:02}" hotkey="{(n + 1) % 10}"' in config for n in range(12)] == [True] * 10 + [
        False
    ] * 2


def test_classes_that_are_digits_keep_their_own_key(tmp_path: Path) -> None:
    assert '<Choice value="0" hotkey="0"/><Choice value="7" hotkey="7"/>' in _label_config(
        with_folders(tmp_path, "7", "0")
    )


@pytest.mark.parametrize("names", [(), ("2024",)])
def test_a_folder_that_names_less_than_two_classes_starts_with_the_default(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    assert _label_config(with_folders(tmp_path, *names)) == _label_config(None)


def test_folders_of_the_same_name_get_projects_of_their_own() -> None:
    first = _title("photos", ())
    second = _title("photos", {first})
    third = _title("photos", {first, second})
    assert (first, second, third) == ("Rush: photos", "Rush: photos (2)", "Rush: photos (3)")


def test_long_folder_names_fit_label_studio() -> None:
    first = _title("x" * 80, ())
    second = _title("x" * 80, {first})
    assert first != second
    assert max(len(first), len(second)) == TITLE_LENGTH


def test_a_taken_port_is_replaced_and_said_so() -> None:
    console = quiet()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        other = _free(taken, ConsoleNarrator(console), "Label Studio")
    assert other != taken
    assert said(console) == f"Port {taken} is taken: Label Studio uses {other}.\n"


def test_a_free_port_is_kept() -> None:
    console, port = quiet(), free_port()
    assert _free(port, ConsoleNarrator(console), "Label Studio") == port
    assert said(console) == ""


@pytest.mark.parametrize("what", ["nowhere", "file", "empty"])
def test_data_that_is_no_folder_of_images_is_refused_with_the_next_step(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    with pytest.raises(BadRequest) as refused:
        _images(tmp_path / what, tmp_path / "demo", ConsoleNarrator(quiet()))
    assert str(tmp_path / what) in refused.value.message
    assert "make demo DATA=folder" in refused.value.hint


def test_label_studio_is_looked_for_where_make_puts_it_unless_another_place_is_named(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    assert _label_studio_environment(tmp_path, {}) == root / ".cache" / "label-studio"
    assert _label_studio_environment(tmp_path, {"RUSH_LABEL_STUDIO_ENV": "/opt/ls"}) == Path("/opt/ls")


def test_without_label_studio_the_demo_says_how_to_get_the_version_that_make_installs(tmp_path: Path) -> None:
    (version,) = re.findall(
        r"^LABEL_STUDIO_VERSION := (\S+)$", (Path(__file__).parents[2] / "Makefile").read_text(), re.MULTILINE
    )
    nowhere = tmp_path / "no where"
    server = LocalLabelStudio(
        tmp_path / "data",
        free_port(),
        python_env=nowhere,
        email="rush@example.com",
        password="secret",
        token="0" * 40,
        files_root=tmp_path,
    )
    with pytest.raises(ServerError, match="no Label Studio at") as caught:
        server.start()
    assert f"python3 -m venv '{nowhere}'" in caught.value.hint
    assert f"pip install label-studio=={version};" in caught.value.hint
    assert "RUSH_LABEL_STUDIO_ENV" in caught.value.hint
