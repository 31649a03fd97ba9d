"""The key that accepts a suggestion: one of the token user's own keys in Label Studio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_backend.ports import LabelStudio

ACTION = "annotation:annotation:submit"
"""Section ``annotation``, element ``annotation:submit``: Label Studio's page cuts the section off."""

KEY = "space"
"""Bound to nothing in Label Studio's keymap (Enter is: it focuses a region), the largest key, either hand."""

DEFAULT = "ctrl+enter"
_PATH = "/api/current-user/hotkeys/"


def accept_key(studio: LabelStudio) -> str | None:
    """The key that the token's user set for submitting, None where it is Label Studio's default."""
    mine = _keys(studio).get(ACTION)
    if not isinstance(mine, Mapping) or mine.get("active") is False:
        return None
    key = str(mine["key"])
    return None if key.lower() == DEFAULT else key


def set_accept_key(studio: LabelStudio, key: str = KEY) -> None:
    """Make ``key`` submit for the token's user; that user's other keys stay."""
    keys = _keys(studio)
    keys[ACTION] = {"key": key, "active": True, "description": "Submit the current annotation"}
    studio.call("PATCH", _PATH, json={"custom_hotkeys": keys})


def _keys(studio: LabelStudio) -> dict[str, Any]:
    return dict((studio.call("GET", _PATH) or {}).get("custom_hotkeys") or {})
