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


@pytest.mark.parametrize(
    "text", ["http://a/1.png\nhttp://a/2.png\n", "a.png,Cat\nb.png,Dog\n", "C:\\x\\a.jpg;Cat\nb.jpg;Dog\n"]
)
def test_a_table_whose_first_row_names_no_columns_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadRequest, match="names no columns"):
        read(tmp_path, "list.csv", text)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="two columns 'image'"):
        read(tmp_path, "list.csv", "image,image\nhttp://a/1.png,http://a/2.png\n")


def test_an_unclosed_quote_is_named_and_the_rows_before_it_come_in(tmp_path: Path) -> None:
    text = 'image,note\nhttp://a/1.png,fine\nhttp://a/2.png,"open\nhttp://a/3.png,fine\n'
    first, second = read(tmp_path, "list.csv", text)
    assert (first.address, first.problem) == ("http://a/1.png", "")
    assert "Not a row of a table" in second.problem


def test_the_nameless_index_of_a_data_frame_is_no_part_of_the_address(tmp_path: Path) -> None:
    items = read(tmp_path, "list.csv", ",image\n0,http://a/1.png\n1,http://a/2,3.png\n")
    assert [item.address for item in items] == ["http://a/1.png", "http://a/2,3.png"]


def test_excels_line_about_the_delimiter_is_no_header(tmp_path: Path) -> None:
    items = read(tmp_path, "list.csv", "sep=;\r\nimage;note\r\nhttp://a/1.png;a,b\r\n")
    assert [(item.address, item.task["data"]) for item in items] == [("http://a/1.png", {"note": "a,b"})]


def test_lines_end_at_line_feeds_only_and_a_bad_first_one_spoils_only_itself(tmp_path: Path) -> None:
    lines = ["{oops", '{"image": "http://a/1.png", "note": "a\u2028b\x85c"}', '{"image": "http://a/2.png"}']
    items = read(tmp_path, "list.jsonl", "\r\n".join(lines))
    assert [bool(item.problem) for item in items] == [True, False, False]
    assert items[1].task["data"] == {"note": "a\u2028b\x85c"}


def test_a_number_of_endless_digits_is_null(tmp_path: Path) -> None:
    [item] = read(tmp_path, "list.json", f'[{{"image": "http://a/1.png", "n": {"9" * 5000}}}]')
    assert item.task["data"] == {"n": None}


def test_a_list_that_holds_more_than_addresses_is_named(tmp_path: Path) -> None:
    good, bad = read(
        tmp_path,
        "list.json",
        json.dumps([{"image": ["http://a/1.png"]}, {"image": ["http://a/1.png", None, 5]}]),
    )
    assert not good.problem
    assert "Not a list of addresses" in bad.problem


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


@pytest.mark.parametrize(
    ("header", "rows", "column"),
    [
        ('"image";"size, in mm";"width, height, depth"', '"a.png";"3";"1"\n', "size, in mm"),
        ('image,"size; in mm","a; b; c"', "a.png,3,1\n", "size; in mm"),
        ("image\tsize, weight, name\tx", "a.png\t3\t1\n", "size, weight, name"),
        ("image|size", "a.png|3\n", "size"),
    ],
)
def test_what_stands_between_the_cells_is_told_by_the_header(
    tmp_path: Path, header: str, rows: str, column: str
) -> None:
    (tmp_path / "a.png").touch()
    [item] = read(tmp_path, "list.csv", f"\ufeff{header}\n{rows}")
    assert item.path == tmp_path / "a.png"
    assert item.task["data"][column] == "3"


@pytest.mark.parametrize("letter", [",", ";", "|"])
def test_an_address_in_a_table_of_one_column_is_taken_whole(tmp_path: Path, letter: str) -> None:
    address = f"http://h/up/w_300{letter}h_200{letter}c_fill/a.png"
    [item] = read(tmp_path, "urls.csv", f"image\n{address}\n")
    assert item.address == address


def test_a_row_with_too_many_cells_is_named(tmp_path: Path) -> None:
    first, second = read(tmp_path, "list.csv", "image,note\nhttp://h/w_1,h_2/a.png,x\nhttp://h/b.png,y\n")
    assert "3 cells, the header 2" in first.problem
    assert second.address == "http://h/b.png"


def test_numbers_that_are_none_become_null(tmp_path: Path) -> None:
    text = '[{"image": "http://a/1.png", "w": NaN, "d": {"x": [Infinity, -Infinity, 1e999, 2.5]}}]'
    [item] = read(tmp_path, "pandas.json", text)
    assert item.task["data"] == {"w": None, "d": {"x": [None, None, None, 2.5]}}


@pytest.mark.parametrize("value", ['"\\ud800"', '"a\\u0000b"', '{"deep": "\\udfff"}'])
def test_what_can_not_be_sent_is_the_problem_of_its_row(tmp_path: Path, value: str) -> None:
    text = f'[{{"image": "http://a/1.png", "x": {value}}}, {{"image": "http://a/2.png"}}]'
    first, second = read(tmp_path, "list.json", text)
    assert first.problem
    assert not second.problem


def test_an_exported_task_comes_in_without_the_ids_that_stand_for_its_rows(tmp_path: Path) -> None:
    answer = {"id": 9, "completed_by": 1, "result": [{"from_name": "kind"}]}
    row = {
        "id": 5,
        "data": {"image": "http://a/5.png"},
        "annotations": [answer],
        "predictions": [31],
        "drafts": [7],
    }
    [item] = read(tmp_path, "export.json", json.dumps([row]))
    assert not item.problem
    assert item.task == {"data": {}, "annotations": [answer]}
    row |= {"predictions": [{"score": 1}], "drafts": [{"result": []}]}
    [item] = read(tmp_path, "export.json", json.dumps([row]))
    assert [note.split(" without")[0] for note in item.notes] == ["1 predictions", "its drafts are left out."]


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("product.photo", {"product": {"photo": "http://a/1.png", "sku": 1}}),
        ("pages[1].scan", {"pages": [{"scan": "x"}, {"scan": "http://a/1.png"}]}),
        ("a.b.c", {"a": {"b": {"c": "http://a/1.png"}}}),
        ("product.photo", {"product.photo": "http://a/1.png"}),
    ],
)
def test_an_image_inside_of_an_object_is_found(tmp_path: Path, key: str, data: dict[str, Any]) -> None:
    (tmp_path / "list.json").write_text(json.dumps([{"data": data}, data]))
    assert [item.address for item in read_source(tmp_path / "list.json", key)] == ["http://a/1.png"] * 2


def test_lists_of_images_are_found(tmp_path: Path) -> None:
    (tmp_path / "b.png").touch()
    first, second = read(
        tmp_path, "list.json", '[{"image": ["http://a/0.png", "b.png"]}, {"image": ["x.png"]}]'
    )
    assert first.places == ("http://a/0.png", tmp_path / "b.png")
    assert "x.png" in second.problem


def test_a_backslash_stands_for_a_slash_where_that_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat 0.png").touch()
    (tmp_path / "odd\\name.png").touch()
    text = "image,label\nimages\\cat 0.png,Cat\nodd\\name.png,Cat\nC:\\no\\cat.png,Cat\nC:/no/cat.png,Cat\n"
    first, second, third, fourth = read(tmp_path, "made_on_windows.csv", text)
    assert first.path == tmp_path / "images" / "cat 0.png"
    assert second.path == tmp_path / "odd\\name.png"
    assert "Windows" in third.problem
    assert "Windows" in fourth.problem


def test_addresses_of_label_studio_below_a_path_are_kept(tmp_path: Path) -> None:
    addresses = [
        "/label-studio/data/upload/4/a.png",
        "/label-studio/data/local-files/?d=set/b.png",
        "/data/upload/1/c.png",
    ]
    assert [
        i.address for i in read(tmp_path, "l.json", json.dumps([{"image": a} for a in addresses]))
    ] == addresses


def test_no_value_makes_a_message_long_or_shows_a_signature(tmp_path: Path) -> None:
    rows = [
        {"image": "data:image/png;base64," + "A" * 200_000},
        {"image": "http://b/p.png?Signature=secret"},
        {"image": "x" * 3000 + ".png"},
        ["y" * 3000],
        {"image": "http://a/1.png", "annotations": "z" * 3000},
    ]
    for item in read(tmp_path, "list.json", json.dumps(rows)):
        assert len(item.name) <= 200
        assert len(item.problem) <= 300
        assert "secret" not in item.name
        assert "AAAA" not in item.name


@given(text=st.text(), suffix=st.sampled_from(["json", "csv"]))
def test_any_text_gives_items_or_a_bad_request(text: str, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            items = read(Path(folder), f"list.{suffix}", text)
        except BadRequest:
            return
        assert all(item.problem or item.path or item.address for item in items)
