"""Which size a project's images are embedded at, where ``RUSH_IMAGE_SIZE`` leaves it to them.

Features of two sizes can't be compared, so a project's size is chosen once, by its first images, and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

ORDINARY = 224
LARGEST_SMALL = 64
"""Pixels of the longer side up to which an image is small: larger ones may show what a small size loses."""
SAMPLE = 32
"""Images that are looked at."""

T = TypeVar("T")


def spread(items: Sequence[T]) -> list[T]:
    """At most SAMPLE of the items, evenly from first to last."""
    count = min(len(items), SAMPLE)
    return [items[n * (len(items) - 1) // max(count - 1, 1)] for n in range(count)]


def all_small(sides: Iterable[int]) -> bool:
    """Whether images whose longer sides are these are small, all of them."""
    found = list(sides)
    return bool(found) and max(found) <= LARGEST_SMALL
