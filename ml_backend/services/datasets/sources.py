"""What a person hands to ``rush import``: a folder, a JSON or a CSV file, as one list of items."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ml_backend.domain.errors import BadRequest
from ml_backend.domain.image_key import texts_of, value_at, without
from ml_backend.domain.shown import shown

SHOWN = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp"))
"""Images that Label Studio takes and every browser shows."""
NOT_SHOWN = frozenset((".tif", ".tiff", ".heic", ".heif", ".jp2", ".ppm", ".pgm", ".ico", ".avif", ".svg"))
COLUMNS = ("image", "url", "path", "file", "filename", "image_url", "image_path", "file_name", "img")
"""Names under which the image is looked for where there is none of the label config's name."""
NO_IMAGE = "No image"
LOOK = 100
"""Rows without any image after which a file counts as the wrong one."""
_SERVED = re.compile(r"(?:/[^/?#]+)*/data/(?:upload|local-files)/")  # also below a path of Label Studio's
_DELIMITERS = (",", ";", "\t", "|")
_SUFFIXES = "|".join(suffix[1:] for suffix in sorted(SHOWN))
_PATH = re.compile(rf"^[a-z][a-z0-9+]*://\S+$|\.({_SUFFIXES})$", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")

csv.field_size_limit(2**31 - 1)  # a cell may hold a whole image (data:…)

Place = Path | str
"""Where an image is: a file on this machine, or an address that is kept as it is."""


_SEP = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)


class _Unreadable(str):
    """What is wrong with a row, in the row's place."""


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One task to import: its images' places, or why it can't be read.

    ``name`` is what reports call it; ``task`` holds what else belongs into the task (data, annotations, …);
    ``notes`` say what of it is left out.
    """

    name: str
    places: tuple[Place, ...] = ()
    task: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path | None:
        """The file of its image, where that is one."""
        return next((place for place in self.places[:1] if isinstance(place, Path)), None)

    @property
    def address(self) -> str:
        """The address of its image, where that is one."""
        return next((place for place in self.places[:1] if isinstance(place, str)), "")


def read_source(source: Path, image_key: str = "image") -> Iterator[SourceItem]:
    """Yield the images of a folder (recursively, in natural order), of a JSON or of a CSV file, row by row.

    JSON: a list of tasks, as Label Studio imports and exports them or plain objects, or one object a line.
    CSV: a header row with a column ``image_key``, or one of COLUMNS, or one column in all. Relative paths
    start at the file. Rows and files that are no image come with their ``problem``; BadRequest where nothing
    can be read.
    """
    if source.is_dir():
        yield from _folder(source)
        return
    if not source.is_file():
        raise BadRequest(f"There is no folder or file {source}.", "Give a folder, a .json or a .csv file.")
    suffix = source.suffix.lower()
    if suffix in (".json", ".jsonl", ".ndjson"):
        rows = _json_rows(source)
    elif suffix in (".csv", ".tsv"):
        rows = _csv_rows(source, image_key)
    elif suffix in SHOWN:
        yield _file(source, source.name)
        return
    else:
        raise BadRequest(f"Can't import {source.name}.", "Give a folder, a .json or a .csv file.")
    items = (_row(f"{source.name} {name}", row, source.parent, image_key) for name, row in rows)
    first = list(islice(items, LOOK))
    if len(first) > 1 and all(item.problem.startswith(NO_IMAGE) for item in first):
        raise BadRequest(
            f"None of the first {len(first)} rows of {source.name} has an image.",
            f"Give it in a column {image_key!r}, or in an object of that path."
            if "." in image_key
            else f"Call the column with its address or path {image_key!r}.",
        )
    yield from first
    yield from items


def _folder(folder: Path) -> Iterator[SourceItem]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=_natural)
        for name in sorted((name for name in files if not name.startswith(".")), key=_natural):
            path = Path(place, name)
            yield _file(path, str(path.relative_to(folder)))


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """img2 before img10; the name itself decides between equals."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def _file(path: Path, name: str) -> SourceItem:
    return SourceItem(name, (path,), problem=_no_image(path))


def _no_image(path: Path) -> str:
    """Why a file of that suffix can't be imported; empty where it can."""
    suffix = path.suffix.lower()
    if suffix in NOT_SHOWN:
        return f"Label Studio or browsers can't show {suffix} images. Convert it to PNG or JPEG."
    return "" if suffix in SHOWN else f"Not an image: {suffix or 'no suffix'}."


def _row(name: str, row: Any, folder: Path, image_key: str) -> SourceItem:
    """One task of a JSON file or one row of a CSV file."""
    if isinstance(row, _Unreadable):
        return SourceItem(name, problem=row)
    if not isinstance(row, Mapping):
        return SourceItem(name, problem=f"Not an object: {shown(row, 60)!r}.")
    task = dict(row) if isinstance(row.get("data"), Mapping) else {"data": row}
    if wrong := _wrong_part(task):
        return SourceItem(name, problem=wrong)
    data = task["data"]
    key = next((key for key in (image_key, *COLUMNS) if value_at(data, key)), "") or _only_path(data)
    value = _listed(value_at(data, key)) if key else None
    values = texts_of(value)
    if isinstance(value, list) and values and len(values) < len(value):
        return SourceItem(name, problem=f"Not a list of addresses: {shown(value, 100)}.")
    if not values:
        return SourceItem(
            name, problem=f"{NO_IMAGE}: neither {image_key!r} nor a column like {COLUMNS[1]!r}."
        )
    rest = without(data, key) if key == image_key else {each: data[each] for each in data if each != key}
    kept, notes = _kept(task)
    return _found(name, values, folder, {"data": rest, **kept}, notes)


def _listed(value: Any) -> Any:
    """A list that a cell of a table holds as JSON, as that list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _wrong_part(task: Mapping[str, Any]) -> str:
    """What no request could carry, or Label Studio would refuse; empty where nothing is wrong."""
    if task.get("meta") and not isinstance(task["meta"], Mapping):
        return f"'meta' is not an object: {shown(task['meta'], 60)!r}."
    for part in ("annotations", "predictions"):
        if not isinstance(task.get(part) or [], list):
            return f"{part!r} is not a list of objects: {shown(task[part], 60)!r}."
    if wrong := next((row for row in task.get("annotations") or () if not isinstance(row, Mapping)), None):
        return f"'annotations' is not a list of objects: {shown(wrong, 60)!r}."
    try:
        text = json.dumps(task, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        return f"It can't be sent: {shown(error, 100)}."
    return "It has a NUL character, which no database takes." if "\\u0000" in text else ""


def _kept(task: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What of an exported task goes in again beside its data, and what does not.

    Ids of predictions and drafts, which short exports have, stand for rows of another project.
    """
    kept: dict[str, Any] = {"meta": task["meta"]} if task.get("meta") else {}
    notes = []
    for part in ("annotations", "predictions"):
        rows = [row for row in task.get(part) or () if isinstance(row, Mapping)]
        usable = [row for row in rows if isinstance(row.get("result"), list)]
        if usable:
            kept[part] = usable
        if len(usable) < len(rows):
            notes.append(f"{len(rows) - len(usable)} {part} without a list 'result' are left out.")
    if any(isinstance(row, Mapping) for row in task.get("drafts") or ()):
        notes.append("its drafts are left out.")
    if task.get("completions"):
        notes.append("its 'completions' are left out: export it from a newer Label Studio.")
    return kept, tuple(notes)


def _only_path(data: Mapping[str, Any]) -> str:
    """The one column whose value looks like an image's address; empty where none or several do."""
    found = [key for key, value in data.items() if isinstance(value, str) and _PATH.search(value.strip())]
    return found[0] if len(found) == 1 else ""


def _found(
    name: str, values: Sequence[str], folder: Path, task: Mapping[str, Any], notes: tuple[str, ...]
) -> SourceItem:
    """The item with all its images; one that is not there spoils the item."""
    places: list[Place] = []
    called = f"{name}: {shown(values[0], 100)}"
    for value in values:
        place, problem = _place(value, folder)
        if problem:
            return SourceItem(called, problem=problem)
        places.append(place)
    return SourceItem(called, tuple(places), task, notes=notes)


def _place(value: str, folder: Path) -> tuple[Place, str]:
    """Where an image is, or what is wrong with its value."""
    drive = _DRIVE.match(value) is not None
    try:
        parts = urlsplit(value)
    except ValueError as error:
        return "", f"Not an address: {shown(value, 100)!r} ({error})."
    if parts.scheme == "file":
        value = unquote(parts.path)
    elif parts.scheme == "data" or _SERVED.match(value) or ("://" in value and not drive):
        return value, ""
    try:
        path = next((path for path in _spellings(value, folder) if path.is_file()), None)
    except (OSError, ValueError) as error:
        return "", f"Can't be read: {shown(error, 100)}."
    if path is not None:
        return path, _no_image(path)
    hint = (
        " It is a path of a Windows machine: import there, or write it relative to the list." if drive else ""
    )
    return "", f"There is no file {shown(folder / value, 120)}.{hint}"


def _spellings(value: str, folder: Path) -> Iterator[Path]:
    """The path as written, then as Windows means it: a backslash stands for a slash there."""
    yield folder / value
    if "\\" in value:
        yield folder / value.replace("\\", "/")


def _text(source: Path) -> str:
    try:
        return source.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{source.name} is not UTF-8: {error}.", "Save it as UTF-8.") from None


# ---- JSON


def _json_rows(source: Path) -> Iterator[tuple[str, Any]]:
    text = _text(source)
    try:
        body = _loads(text)
    except (ValueError, RecursionError) as error:
        # Not splitlines, which also cuts at line separators inside of strings.
        lines = [(number, _line(line)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        whole = text.lstrip().startswith("[") or not any(isinstance(row, Mapping) for _, row in lines)
        if len(lines) < 2 or whole:
            raise BadRequest(f"{source.name} is not JSON: {error}.", "Give a list of tasks.") from None
        for number, row in lines:
            yield f"line {number}", row
        return
    if not isinstance(body, list | dict):
        raise BadRequest(f"{source.name} holds {type(body).__name__}, not tasks.", "Give a list of tasks.")
    for number, row in enumerate(body if isinstance(body, list) else [body], 1):
        yield f"task {number}", row


def _loads(text: str) -> Any:
    """JSON as pandas and others write it: what is no finite number elsewhere becomes null."""
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite, parse_int=_whole)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:  # more digits than Python reads
        return None


def _line(line: str) -> Any:
    """What a line holds; the line itself where that is no JSON."""
    try:
        return _loads(line)
    except (ValueError, RecursionError):
        return line


# ---- CSV


def _csv_rows(source: Path, image_key: str) -> Iterator[tuple[str, Any]]:
    text = _text(source)
    said = _SEP.match(text)  # how Excel is told, and tells
    text = _SEP.sub("\n", text, count=1)
    delimiter = said[1] if said else _delimiter(text, image_key, source.suffix.lower() == ".tsv")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: Any = next(_filled(reader), [])
    if isinstance(header, _Unreadable):
        raise BadRequest(f"{source.name}, line 1: {header}", "The first row names the columns.")
    names = [name.strip() for name in header]
    columns = [name for name in names if name]
    if not columns:
        raise BadRequest(f"{source.name} is empty.", "The first row names the columns.")
    if address := next((name for name in columns if _PATH.search(name)), ""):
        raise BadRequest(
            f"The first row of {source.name} names no columns: it holds {shown(address, 100)!r}.",
            f"Put a row with names above it: {image_key!r} for the images.",
        )
    if twice := next((name for name in columns if columns.count(name) > 1), ""):
        raise BadRequest(f"{source.name} has two columns {shown(twice, 60)!r}.", "Give each its own name.")
    for row in _filled(reader):
        yield f"line {reader.line_num}", _cells(row, names, columns, delimiter, image_key)


def _filled(reader: Any) -> Iterator[Any]:
    """The rows in which something is; one that can't be read as what is wrong with it."""
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield _Unreadable(f"Not a row of a table: {error}.")
            continue
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield row


def _cells(row: Any, names: Sequence[str], columns: Sequence[str], delimiter: str, image_key: str) -> Any:
    if isinstance(row, _Unreadable):
        return row
    if len(columns) == 1:
        # A table of one column has nothing between its cells: addresses may hold any delimiter.
        key = image_key if columns[0] == image_key else COLUMNS[0]
        return {key: delimiter.join(row[names.index(columns[0]) :]).strip(delimiter)}
    if any(cell.strip() for cell in row[len(names) :]):
        return _Unreadable(
            f"It has {len(row)} cells, the header {len(names)}. Put cells with {delimiter!r} in quotes."
        )
    return {name: cell for name, cell in zip(names, row, strict=False) if name}


def _delimiter(text: str, image_key: str, tabs: bool) -> str:
    """What is between the cells: read with it, the header has the image's column, or the most columns.

    Other delimiters may stand inside of quoted names.
    """
    headers = {}
    for delimiter in ("\t", *_DELIMITERS) if tabs else _DELIMITERS:
        rows = _filled(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        header: Any = next(rows, [])
        headers[delimiter] = [] if isinstance(header, _Unreadable) else [name.strip() for name in header]
    wanted = {image_key, *COLUMNS}

    def fit(delimiter: str) -> tuple[bool, int]:
        names = headers[delimiter]
        return not wanted.isdisjoint(names), len(names)

    return max(headers, key=fit)
