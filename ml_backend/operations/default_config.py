"""The label config of a project that has none."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

NAME = "label_config.xml"


def default_label_config() -> str:
    """The text of label_config.xml: the copy in the wheel, or the file on top of a checkout."""
    shipped = files("ml_backend") / NAME
    found = shipped if shipped.is_file() else Path(__file__).parents[2] / NAME
    return found.read_text(encoding="utf-8")
