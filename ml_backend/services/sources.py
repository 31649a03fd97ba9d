"""What to import: the images of a folder, a JSON or a CSV file, in a stable order."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_backend.errors import BadRequest

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".avif")
    + (".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".ico")
)
REMOTE = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image to import: a file, or an address that Label Studio reads itself; ``data`` goes along."""

    name: str
    path: Path | None = None
    address: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def read_source(source: Path, image_key: str) -> Iterator[SourceImage]:
    """Yield the images of a folder (recursively), a .json or a .csv file; bad rows carry a problem.

    JSON is a list, or lines, of Label Studio tasks (``{"data": {…}}``) or plain objects. Relative paths
    start at the file's folder. Raises BadRequest where the source can't be read.
    """
    if source.is_dir():
        for path in sorted(source.rglob("*"), key=_natural):
            hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
            if path.is_file() and not hidden and path.suffix.lower() in SUFFIXES:
                yield SourceImage(str(path.relative_to(source)), path)
        return
    if not source.is_file():
        raise BadRequest(f"There is no {source}.", "Give a folder, a .json or a .csv file.")
    rows = {".json": _json_rows, ".jsonl": _json_rows, ".csv": _csv_rows}.get(source.suffix.lower())
    if rows is None:
        raise BadRequest(f"{source} is neither a folder nor .json nor .csv.", "Rename or convert it.")
    for number, row in enumerate(rows(source), 1):
        yield _image(source, number, row, image_key)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", str(path).casefold())
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def _image(source: Path, number: int, row: Any, image_key: str) -> SourceImage:
    name = f"{source.name}, row {number}"
    data = row.get("data", row) if isinstance(row, Mapping) else None
    if not isinstance(data, Mapping):
        return SourceImage(name, problem="The row is no object.")
    value = data.get(image_key)
    if not isinstance(value, str) or not value.strip():
        keys = ", ".join(map(str, list(data)[:8]))
        return SourceImage(
            name, problem=f"It has no {image_key!r} (the label config's image); it has {keys}."
        )
    rest = {str(key): kept for key, kept in data.items() if key != image_key}
    value = value.strip()
    if REMOTE.match(value) or value.startswith("/data/"):
        return SourceImage(value, address=value, data=rest)
    return SourceImage(value, path=(source.parent / value).resolve(), data=rest)


def _json_rows(source: Path) -> list[Any]:
    text = _text(source)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError:
            raise BadRequest(f"{source} is no JSON: {error}.", "Mend it there.") from None
    return rows if isinstance(rows, list) else [rows]


def _csv_rows(source: Path) -> list[Any]:
    return list(csv.DictReader(_text(source).splitlines()))


def _text(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{source} is no UTF-8 text: {error}.", "Save it as UTF-8.") from None
