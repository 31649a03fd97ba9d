"""Sources: whatever a person hands over becomes items, each with its image or its problem."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.domain.errors import BadRequest
from ml_backend.services.datasets.sources import SourceItem, read_source


def read(folder: Path, name: str, text: str) -> list[SourceItem]:
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    return list(read_source(folder / name))


def test_folders_are_read_in_natural_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("img10.png", "img2.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    items = list(read_source(tmp_path))
    assert [item.name for item in items] == ["img2.png", "img10.png", "notes.txt"]
    assert [bool(item.problem) for item in items] == [False, False, True]


def test_csv_with_semicolons_and_quoted_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    [item] = read(tmp_path, "list.csv", 'image;note\na.png;"two\nlines"\n')
    assert item.path == tmp_path / "a.png"
    assert item.task["data"] == {"note": "two\nlines"}


def test_one_bad_json_line_spoils_only_itself(tmp_path: Path) -> None:
    items = read(tmp_path, "list.jsonl", '{"image": "http://a/1.png"}\n{oops\n{"image": "http://a/2.png"}\n')
    assert [bool(item.problem) for item in items] == [False, True, False]


def test_file_addresses_are_paths(tmp_path: Path) -> None:
    image = tmp_path / "a b.png"
    image.touch()
    [item] = read(tmp_path, "list.json", json.dumps([{"image": image.as_uri()}]))
    assert item.path == image
    assert not item.problem


@pytest.mark.parametrize(
    "part",
    [{"meta": "x"}, {"meta": [1]}, {"predictions": {"a": 1}}, {"annotations": "x"}, {"annotations": [1]}],
)
def test_a_part_of_a_wrong_type_skips_its_row(tmp_path: Path, part: dict[str, Any]) -> None:
    rows = [{"data": {"image": "http://a/1.png"}, **part}, {"data": {"image": "http://a/2.png"}}]
    first, second = read(tmp_path, "list.json", json.dumps(rows))
    assert next(iter(part)) in first.problem
    assert not second.problem


def test_the_only_path_like_column_is_the_image(tmp_path: Path) -> None:
    [item] = read(tmp_path, "list.csv", "who,picture\nme,http://a/1.png\n")
    assert item.address == "http://a/1.png"
    assert item.task["data"] == {"who": "me"}


@given(text=st.text(), suffix=st.sampled_from(["json", "csv"]))
def test_any_text_gives_items_or_a_bad_request(text: str, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            items = read(Path(folder), f"list.{suffix}", text)
        except BadRequest:
            return
        assert all(item.problem or item.path or item.address for item in items)
