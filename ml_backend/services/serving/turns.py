"""A project's work, one thing after the other in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Turns:
    """Does what it is handed in the order in which it comes, so that no project waits for another one's.

    Its thread dies with the process: what it may be waiting for then must not hold up the end. (An executor
    of concurrent.futures is joined at exit.)
    """

    def __init__(self, name: str) -> None:
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], T]) -> Future[T]:
        """Its outcome, once it is its turn."""
        outcome: Future[T] = Future()
        self._waiting.put((outcome, work))
        return outcome

    def stop(self, seconds: float) -> None:
        """Finish what is being done, for so long at most, and leave the rest."""
        self._stopping = True
        self._waiting.put(None)
        self._thread.join(seconds)

    _stopping = False

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None and not self._stopping:
            outcome, work = item
            try:
                outcome.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the outcome's, whatever it is
                outcome.set_exception(error)
