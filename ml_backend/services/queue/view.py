"""A project's images as a query strategy sees them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ml_backend.domain.generation import Array, Floats
from ml_backend.domain.model import LabelState
from ml_backend.services.queue.pool import ProjectPool
from strategies import Pool


def view(
    pool: ProjectPool,
    available: npt.NDArray[np.bool_],
    *,
    probabilities: Floats | None = None,
    seconds: Floats | None = None,
    answers: Array | None = None,
) -> Pool:
    """The pool of a strategy; only embedded rows of ``available`` (n,) may be asked about.

    ``answers`` (n,) take the place of those given so far. The caller holds the pool's lock.
    """
    known = pool.embedded & available
    regions = bool(pool.density.any())

    def nearest(row: int, k: int) -> npt.NDArray[np.int64]:
        taken = int((pool.open() & ~available).sum())  # open, but reserved to somebody else
        found = pool.neighbours(pool.space, row, k + 1 + taken, LabelState.OPEN)
        rows = np.array([other for other, _ in found], np.int64)
        free: npt.NDArray[np.int64] = rows[known[rows] & (rows != row)][:k]
        return free

    return Pool(
        vectors=pool.vectors(pool.space) if known.any() else None,
        available=known,
        labelled=(pool.states == LabelState.LABELLED) & pool.embedded,
        answers=pool.answers if answers is None else answers,
        probabilities=probabilities,
        clusters=pool.clusters if regions else None,
        density=pool.density if regions else None,
        nearest=nearest,
        head=pool.head,
        agreed=pool.agreed,
        seconds=seconds,
        classes=tuple(pool.columns.names[: None if probabilities is None else probabilities.shape[1]]),
    )
