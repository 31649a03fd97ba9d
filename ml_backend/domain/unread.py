"""An image that can't be read, and when it is asked for again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ml_backend.domain.model import TaskId

WAITS = (60.0, 600.0, 3600.0)
"""Seconds after the first tries; then a day after each."""
DAY = 86_400.0
TRIES = 10
"""After this many only a person's own sync or import asks again: a week and a bit of silence."""
SHOWN = 160


@dataclass(frozen=True, slots=True)
class Unread:
    """One address that gave no image: of which task, why, how often it was asked for, and when it is again.

    ``next_try`` is in seconds since 1970; infinite where only a person's sync or import asks again.
    """

    task: TaskId
    why: str
    tries: int
    next_try: float

    def due(self, now: float) -> bool:
        """Whether it may be asked for again."""
        return now >= self.next_try


def tried(before: Unread | None, task: TaskId, why: str, now: float) -> Unread:
    """One more try that failed."""
    tries = 1 if before is None else before.tries + 1
    wait = math.inf if tries >= TRIES else dict(enumerate(WAITS, 1)).get(tries, DAY)
    return Unread(task, why[:SHOWN], tries, now + wait)


def given_up(before: Unread | None, task: TaskId, why: str) -> Unread:
    """It is not to be tried again unless a person asks."""
    return Unread(task, why[:SHOWN], 1 if before is None else before.tries + 1, math.inf)
