"""Work on a stream of named items in threads: in order, lazily, in bounded memory."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from typing import TypeVar

from ml_backend.domain.errors import BadImage

SHOWN = 300
"""Characters of an error that nobody has foreseen."""

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class HungError(Exception):
    """Work on an item does not end."""


def cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    pool: Executor,
    work: Callable[[T], R],
    items: Iterable[tuple[str, T]],
    ahead: int,
    patience: float | None = None,
) -> Generator[tuple[str, R | BadImage], None, None]:
    """Yield (name, ``work(item)``) in the order of ``items``, each as soon as it and all before it are done.

    At most ``ahead`` items are read before their turn. What goes wrong with an item is yielded as BadImage:
    one item never ends the others. Closing the iterator cancels what has not begun. An item whose turn it is
    and that is not done after ``patience`` seconds raises HungError.
    """
    waiting: deque[tuple[str, Future[R]]] = deque()
    try:
        for name, item in items:
            waiting.append((name, pool.submit(work, item)))
            while waiting and (len(waiting) >= ahead or waiting[0][1].done()):
                first, future = waiting.popleft()
                outcome = _outcome(future, patience)
                yield first, outcome
        while waiting:
            first, future = waiting.popleft()
            outcome = _outcome(future, patience)
            yield first, outcome
    finally:
        for _, future in waiting:
            future.cancel()


def _outcome(future: Future[R], patience: float | None) -> R | BadImage:
    try:
        error = future.exception(patience)
    except TimeoutError:
        raise HungError from None
    if error is None:
        return future.result()
    if isinstance(error, BadImage):
        return error
    if not isinstance(error, Exception):
        raise error  # told to stop
    log.debug("Not foreseen:", exc_info=error)
    return BadImage(f"{type(error).__name__}: {error}"[:SHOWN])
