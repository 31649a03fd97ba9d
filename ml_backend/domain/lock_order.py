"""The one order in which a thread takes this project's locks, so that no two ever wait for each other.

A thread may take a lock only if it holds none of a higher rank. The locks inside of an index and of a file
cache come after all of these: nothing of ours is taken under them.

Submits wait for the locks from EVENTS on, so whoever holds one of them waits for nobody longer than a submit
may (``deadline.PROMPT``); FILLING is the exception, which no submit takes.
"""

from __future__ import annotations

import logging
import threading
from enum import IntEnum
from types import TracebackType

from ml_backend.domain import deadline

log = logging.getLogger(__name__)


class Rank(IntEnum):
    """Locks from the outermost to the innermost, with what each guards."""

    REGISTRY = 1
    """Which projects are loaded."""
    LOADING = 2
    """Making a project's pool anew: seconds, where there are 100,000 tasks."""
    EVENTS = 3
    """One event at a time changes the state and the pool of a project."""
    FILLING = 4
    """One refill of a window at a time; a bulk request goes out under it."""
    QUEUE = 5
    """Sessions, ranking and what is decided to come next."""
    POOL = 6
    """The arrays of a project."""
    WRITER = 7
    """One prediction request of a task at a time goes out under it."""
    WINDOW = 8
    """Places of tasks."""


class OrderViolation(Exception):
    """A lock was taken out of order: two threads could wait for each other for ever."""


class _Held(threading.local):
    def __init__(self) -> None:
        self.locks: list[OrderedLock] = []
        self.deadlines: list[float] = []


_held = _Held()


class OrderedLock:
    """A re-entrant lock of a rank; a violation of the order is logged, or raised where ``strict`` (tests)."""

    strict = False

    def __init__(self, rank: Rank) -> None:
        self.rank, self._lock = rank, threading.RLock()
        self._prompt = rank >= Rank.EVENTS and rank is not Rank.FILLING

    def __enter__(self) -> OrderedLock:
        above = max((lock.rank for lock in _held.locks if lock is not self), default=Rank.REGISTRY)
        if above >= self.rank > Rank.REGISTRY and self not in _held.locks:
            told = f"{self.rank.name} is taken under {Rank(above).name}."
            if self.strict:
                raise OrderViolation(told)
            log.error("Lock order: %s", told)
        self._lock.acquire()
        _held.locks.append(self)
        if self._prompt:
            _held.deadlines.append(deadline.shorten(deadline.PROMPT))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._prompt:
            deadline.restore(_held.deadlines.pop())
        _held.locks.remove(self)
        self._lock.release()
