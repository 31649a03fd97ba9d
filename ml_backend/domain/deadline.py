"""How long the current thread may still wait for other processes, whatever it calls.

A door or a turn of the maintenance loop sets it, and so does a lock that submits need; the adapters keep to
it. Without one they are as patient as a worker may be.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PROMPT = 0.8
"""Seconds that a webhook may wait for all it needs: somebody waits, and Label Studio gives it one second."""
LEAST = 0.05
"""Seconds that a call gets where no time is left: what answers at once still may."""


class _Ends(threading.local):
    at = math.inf


_ends = _Ends()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Everything in the block together waits at most so long, or less where less is left already."""
    before = shorten(seconds)
    try:
        yield
    finally:
        restore(before)


def shorten(seconds: float) -> float:
    """Begin what ``within`` is in one; returns what ``restore`` ends it with."""
    before = _ends.at
    _ends.at = min(before, time.monotonic() + seconds)
    return before


def restore(before: float) -> None:
    """End what ``shorten`` began."""
    _ends.at = before


def runs() -> bool:
    """Whether there is a deadline: somebody waits for this thread."""
    return _ends.at < math.inf


def left(otherwise: float) -> float:
    """The seconds that one call may take: ``otherwise``, or what is left, if that is less."""
    return min(otherwise, max(_ends.at - time.monotonic(), LEAST))
