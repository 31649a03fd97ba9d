"""Labels in a column of the control's name, as Label Studio's JSON-MIN and CSV exports have them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ml_backend.controls import Control
from ml_backend.domain.model import Suggestion, text_of
from ml_backend.domain.shown import shown
from ml_backend.services.datasets.sources import SourceItem

EXPORTED = "annotation_id"
"""The column by which an export of Label Studio's is known."""
_OF_EXPORTS = frozenset(
    (
        EXPORTED,
        "id",
        "annotator",
        "created_at",
        "updated_at",
        "lead_time",
        "agreement",
        "annotation_created_at",
    )
)


def with_labels(item: SourceItem, control: Control) -> SourceItem:
    """The item with its label as an annotation; a note where there is one that can't be taken.

    What an export says about its annotations is no data of the task.
    """
    data = item.task.get("data", {})
    if item.problem or item.task.get("annotations") or control.from_name not in data:
        return item
    names, understood = _names(data[control.from_name])
    left = {name: value for name, value in data.items() if name not in _OF_EXPORTS | {control.from_name}}
    task = {**item.task, "data": left if EXPORTED in data else data}
    wrong = next((name for name in names if name not in control.columns), None)
    if not understood or wrong is not None:
        what = shown(data[control.from_name] if wrong is None else wrong, 40)
        note = f"{what!r} in the column {control.from_name!r} is none of its classes, so it is no label."
        return replace(item, task=task, notes=(*item.notes, note))
    if len(names) > 1 and not control.multiple:
        note = (
            f"there are several labels in the column {control.from_name!r}, which takes one; none is taken."
        )
        return replace(item, task=task, notes=(*item.notes, note))
    if not names:
        return replace(item, task=task)
    regions = control.write(Suggestion(tuple(names), 1.0))
    kept = ("from_name", "to_name", "type", "value")
    answer: dict[str, Any] = {"result": [{name: region[name] for name in kept} for region in regions]}
    if EXPORTED in data and (seconds := _seconds(data.get("lead_time"))) is not None:
        answer["lead_time"] = seconds
    note = f"the label in the column {control.from_name!r} is taken."
    return replace(item, task={**task, "annotations": [answer]}, notes=(*item.notes, note))


def _names(value: Any) -> tuple[list[str], bool]:
    """The labels in a cell, and whether it could be understood: one, or several as lists and objects."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return [value.strip()], True
    if isinstance(value, Mapping):
        return _names(value.get("choices")) if isinstance(value.get("choices"), list) else ([], False)
    if isinstance(value, list):
        parts = [_names(each) for each in value]
        return list(dict.fromkeys(name for names, _ in parts for name in names)), all(
            fine for _, fine in parts
        )
    if value is None or isinstance(value, (int, float)):
        return ([] if value is None else [str(value)]), True
    text = text_of(value).strip()
    return ([text] if text else []), True


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < math.inf else None
