"""The version, which stands in pyproject.toml alone."""

from __future__ import annotations

from importlib.metadata import version as installed


def version() -> str:
    """Return the version of Rush that is installed."""
    return installed("label-studio-rush")
