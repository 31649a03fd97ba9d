"""The mark in a result that says: a machine made this, under which certificate, and what it said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def mark(result: Sequence[Mapping[str, Any]], certificate: str) -> list[dict[str, Any]]:
    """The result with the mark in each region's ``meta.rush``, which Label Studio keeps."""
    return [
        {**region, "meta": {"rush": {"certificate": certificate, "value": region.get("value")}}}
        for region in result
    ]


def is_marked(result: Iterable[Mapping[str, Any]] | None) -> bool:
    """Whether a machine made the result; no longer once a person has changed any answer in it."""
    regions = list(result or ())
    return bool(regions) and all(_stands(region) for region in regions)


def _stands(region: Any) -> bool:
    meta = region.get("meta") if isinstance(region, Mapping) else None
    rush = meta.get("rush") if isinstance(meta, Mapping) else None
    return isinstance(rush, Mapping) and "certificate" in rush and rush.get("value") == region.get("value")
