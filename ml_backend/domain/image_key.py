"""Where a task's data holds its image: what a label config calls ``$KEY``, which may lead into objects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

_KEY = re.compile(r"[^.\[\]{}$]+(?:\.[^.\[\]{}$]+|\[\d+\])*")
_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def is_key(key: str) -> bool:
    """Whether it names one place: ``image``, ``product.photo``, ``pages[0].scan``."""
    return _KEY.fullmatch(key) is not None


def value_at(data: Mapping[str, Any], key: str) -> Any:
    """What is there, or None; like Label Studio's editor a key of just that name goes first."""
    if key in data:
        return data[key]
    found: Any = data
    for step in _steps(key):
        inside = isinstance(found, Sequence if isinstance(step, int) else Mapping) and not isinstance(
            found, str
        )
        try:
            found = found[step] if inside else None
        except (KeyError, IndexError):
            return None
    return found


def with_value(data: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of the data with the value in its place; objects and lists on the way are made."""
    copy: dict[str, Any] = deepcopy({name: each for name, each in data.items() if name != key})
    steps = _steps(key)
    here: Any = copy
    for step, after in pairwise(steps):
        kind: type = list if isinstance(after, int) else dict
        _put(here, step, there if isinstance(there := _get(here, step), kind) else kind())
        here = _get(here, step)
    _put(here, steps[-1], value)
    return copy


def without(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A copy of the data with nothing in that place."""
    if key in data or value_at(data, key) is None:
        return {name: value for name, value in data.items() if name != key}
    return with_value(data, key, None)


def texts_of(value: Any) -> list[str]:
    """The addresses in a value: one, or a list of them."""
    rows = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [row.strip() for row in rows if isinstance(row, str) and row.strip()]


def _steps(key: str) -> list[str | int]:
    return [int(number) if number else name for number, name in _STEP.findall(key)]


def _get(here: Any, step: str | int) -> Any:
    try:
        return here[step]
    except (KeyError, IndexError):
        return None


def _put(here: Any, step: str | int, value: Any) -> None:
    if isinstance(step, int) and step >= len(here):
        here.append(value)
    else:
        here[step] = value
