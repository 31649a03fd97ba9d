"""What a person hands to ``rush import``: a folder, a JSON or a CSV file, as one list of items."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ml_backend.domain.errors import BadRequest

SHOWN = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp"))
"""Images that Label Studio takes and every browser shows."""
NOT_SHOWN = frozenset((".tif", ".tiff", ".heic", ".heif", ".jp2", ".ppm", ".pgm", ".ico", ".avif", ".svg"))
COLUMNS = ("image", "url", "path", "file", "filename", "image_url", "image_path", "file_name", "img")
"""Names under which the image is looked for where there is none of the label config's name."""
NO_IMAGE = "No image"
LOOK = 100
"""Rows without any image after which a file counts as the wrong one."""
_SERVED = ("/data/upload/", "/data/local-files/")
_DELIMITERS = ",;\t"
_SUFFIXES = "|".join(suffix[1:] for suffix in sorted(SHOWN))
_PATH = re.compile(rf"^[a-z][a-z0-9+]*://\S+$|\.({_SUFFIXES})$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One image to import: a file (``path``), an address that is kept as it is, or why it can't be read.

    ``name`` is what reports call it; ``task`` holds what else belongs into the task (data, annotations, …).
    """

    name: str
    path: Path | None = None
    address: str = ""
    task: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_source(source: Path, image_key: str = "image") -> Iterator[SourceItem]:
    """Yield the images of a folder (recursively, in natural order), of a JSON or of a CSV file, row by row.

    JSON: a list of tasks, as Label Studio imports them or plain objects, or one object a line. CSV: a header
    row with a column ``image_key``, or one of COLUMNS, or one column in all. Relative paths start at the
    file. Rows and files that are no image come with their ``problem``; BadRequest where nothing can be read.
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
            f"Call the column with its address or path {image_key!r}.",
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


def _file(path: Path, name: str, task: Mapping[str, Any] | None = None) -> SourceItem:
    suffix = path.suffix.lower()
    problem = ""
    if suffix in NOT_SHOWN:
        problem = f"Label Studio or browsers can't show {suffix} images. Convert it to PNG or JPEG."
    elif suffix not in SHOWN:
        problem = f"Not an image: {suffix or 'no suffix'}."
    return SourceItem(name, path, task=task or {}, problem=problem)


def _row(name: str, row: Any, folder: Path, image_key: str) -> SourceItem:
    """One task of a JSON file or one row of a CSV file."""
    if not isinstance(row, Mapping):
        return SourceItem(name, problem=f"Not an object: {str(row)[:60]!r}.")
    task = dict(row) if isinstance(row.get("data"), Mapping) else {"data": row}
    data = dict(task["data"])
    if wrong := _wrong_part(task):
        return SourceItem(name, problem=wrong)
    key = next((key for key in (image_key, *COLUMNS) if data.get(key)), "") or _only_path(data)
    value = data.pop(key, None)
    if not isinstance(value, str) or not value.strip():
        return SourceItem(
            name, problem=f"{NO_IMAGE}: neither {image_key!r} nor a column like {COLUMNS[1]!r}."
        )
    kept = {part: task[part] for part in ("meta", "annotations", "predictions") if task.get(part)}
    return _found(name, value.strip(), folder, {"data": data, **kept})


def _wrong_part(task: Mapping[str, Any]) -> str:
    """What Label Studio would refuse the whole request for; empty where nothing is wrong."""
    if task.get("meta") and not isinstance(task["meta"], Mapping):
        return f"'meta' is not an object: {str(task['meta'])[:60]!r}."
    for part in ("annotations", "predictions"):
        rows = task.get(part) or []
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            return f"{part!r} is not a list of objects: {str(rows)[:60]!r}."
    return ""


def _only_path(data: Mapping[str, Any]) -> str:
    """The one column whose value looks like an image's address; empty where none or several do."""
    found = [key for key, value in data.items() if isinstance(value, str) and _PATH.search(value.strip())]
    return found[0] if len(found) == 1 else ""


def _found(name: str, value: str, folder: Path, task: Mapping[str, Any]) -> SourceItem:
    try:
        parts = urlsplit(value)
    except ValueError as error:
        return SourceItem(name, problem=f"Not an address: {value[:200]!r} ({error}).")
    name = f"{name}: {value[:200]}"
    if parts.scheme == "file":
        value = unquote(parts.path)
    elif "://" in value or value.startswith(_SERVED):
        return SourceItem(name, address=value, task=task)
    path = folder / value
    try:
        there = path.is_file()
    except (OSError, ValueError) as error:
        return SourceItem(name, problem=f"Can't be read: {error}.")
    return _file(path, name, task) if there else SourceItem(name, problem=f"There is no file {path}.")


def _text(source: Path) -> str:
    try:
        return source.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{source.name} is not UTF-8: {error}.", "Save it as UTF-8.") from None


def _json_rows(source: Path) -> Iterator[tuple[str, Any]]:
    text = _text(source)
    try:
        body = json.loads(text)
    except ValueError as error:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        if len(lines) < 2 or not lines[0][1].lstrip().startswith("{") or not _is_json(lines[0][1]):
            raise BadRequest(f"{source.name} is not JSON: {error}.", "Give a list of tasks.") from None
        for number, line in lines:
            yield f"line {number}", json.loads(line) if _is_json(line) else line
        return
    if not isinstance(body, list | dict):
        raise BadRequest(f"{source.name} holds {type(body).__name__}, not tasks.", "Give a list of tasks.")
    for number, row in enumerate(body if isinstance(body, list) else [body], 1):
        yield f"task {number}", row


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _csv_rows(source: Path, image_key: str) -> Iterator[tuple[str, Any]]:
    text = _text(source)
    header = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="")
    names = [name for name in reader.fieldnames or () if name]
    if not names:
        raise BadRequest(f"{source.name} is empty.", "The first row names the columns.")
    if len(names) == 1 and names[0] not in (image_key, *COLUMNS):
        image_key = names[0]
    try:
        for row in reader:
            cells = {key: value for key, value in row.items() if key and value is not None}
            if len(names) == 1:
                cells = {COLUMNS[0]: cells.get(image_key, "")}
            yield f"line {reader.line_num}", cells
    except csv.Error as error:
        raise BadRequest(f"{source.name}, line {reader.line_num}: {error}.", "Correct that row.") from None
