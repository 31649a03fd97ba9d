"""A project's images as a query strategy sees them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ml_backend.domain.generation import Array, Floats
from ml_backend.domain.model import LabelState
from ml_backend.services.queue.pool import LivePool
from strategies import Pool


def view(
    live: LivePool,
    available: npt.NDArray[np.bool_],
    *,
    probabilities: Floats | None = None,
    seconds: Floats | None = None,
    answers: Array | None = None,
) -> Pool:
    """The pool of a strategy; only embedded rows of ``available`` (n,) may be asked about.

    ``answers`` (n,) take the place of those given so far. The caller holds the pool's lock.
    """
    known = live.known & available
    regions = bool(live.density.any())

    def nearest(row: int, k: int) -> npt.NDArray[np.int64]:
        taken = int((live.open() & ~available).sum())  # open, but promised to somebody else
        vector, many = live.vectors(live.space)[row], k + 1 + taken
        tasks, _ = live.index.neighbours(live.space, vector, many, LabelState.OPEN)
        rows = np.array([live.row_of[task] for task in tasks.tolist() if task in live.row_of], np.int64)
        free: npt.NDArray[np.int64] = rows[known[rows] & (rows != row)][:k]
        return free

    return Pool(
        vectors=live.vectors(live.space) if known.any() else None,
        available=known,
        labelled=(live.states == LabelState.LABELLED) & live.known,
        answers=live.answers if answers is None else answers,
        probabilities=probabilities,
        clusters=live.clusters if regions else None,
        density=live.density if regions else None,
        nearest=nearest,
        head=live.head,
        agreed=live.agreed,
        seconds=seconds,
        classes=live.spec.classes,
    )
