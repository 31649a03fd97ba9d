"""When two tasks are the same: the same images, by content, with the same data beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NewType

from ml_backend.domain.image_key import without

Identity = NewType("Identity", str)

RUSH_COLUMNS = ("rush_x", "rush_y", "rush_cluster")
"""What Rush itself may write into the data."""


def beside(data: Mapping[str, Any], image_key: str) -> str:
    """What the data says beside the image, in a form that is equal for equal data.

    Numbers count as their text, since tables hold no numbers; what is empty counts as not there.
    """
    rest = {name: value for name, value in without(data, image_key).items() if name not in RUSH_COLUMNS}
    return json.dumps(_plain(rest), sort_keys=True, ensure_ascii=True)


def identity(images: Sequence[str], beside: str) -> Identity:
    """The identity of a task with these images (content keys, or addresses where those are not known)."""
    text = json.dumps([list(images), beside])
    return Identity(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        rows = {str(name): _plain(each) for name, each in value.items()}
        return {name: each for name, each in rows.items() if each not in (None, "", {}, [])}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (bool, int, float)):
        return str(value)
    return value.strip() if isinstance(value, str) else value
