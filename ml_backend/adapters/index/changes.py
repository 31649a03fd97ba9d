"""What is changed in an index while its successor is built."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Changes(Generic[T]):
    """Makes changes in what is ``current``, and in its successor once that takes over: none is lost.

    Safe for many threads; one successor is built at a time, and searches need not wait for it.
    """

    def __init__(self, current: Callable[[], T]) -> None:
        self.lock = threading.Lock()
        self._current, self._building = current, threading.Lock()
        self._missed: list[Callable[[T], object]] | None = None

    def make(self, change: Callable[[T], object]) -> None:
        """Change what is current; from now on until ``succeeding`` also remember it."""
        with self.lock:
            change(self._current())
            if self._missed is not None:
                self._missed.append(change)

    @contextmanager
    def building(self) -> Iterator[None]:
        """While a successor is being built; waits for another one."""
        with self._building:
            with self.lock:
                self._missed = []
            try:
                yield
            finally:
                self._missed = None

    @contextmanager
    def succeeding(self, fresh: T) -> Iterator[None]:
        """Make up in ``fresh`` for what was changed meanwhile; inside it has to become current."""
        with self.lock:
            for change in self._missed or ():
                change(fresh)
            yield
