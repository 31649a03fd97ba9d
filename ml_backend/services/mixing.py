"""Mixes the audits of a draw into what people are served, so that nobody can tell which ones they are."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

from ml_backend.domain import TaskId
from ml_backend.draw import Draw
from ml_backend.services.live import LivePool


class Mixing:
    """The audits still to be answered, in the order of the draw; about ``share`` of all that is served.

    Which turn is an audit is a coin's decision: every tenth could be counted.
    """

    def __init__(self, draw: Draw | None = None) -> None:
        self._waiting = [] if draw is None else draw.audits[::-1]
        self._share = 0.0 if draw is None else draw.share
        self._coin = random.Random(None if draw is None else draw.seed)

    def __len__(self) -> int:
        return len(self._waiting)

    def due(self, live: LivePool, available: npt.NDArray[np.bool_]) -> TaskId | None:
        """The audit that comes next if one is due now; ``available`` (n,) rows may be served."""
        while self._waiting and not live.is_open(self._waiting[-1]):
            self._waiting.pop()  # answered; where its answer is deleted again, the next reload finds it
        if not self._waiting or self._coin.random() >= self._share:
            return None
        known = (task for task in reversed(self._waiting) if task in live.row_of)
        return next((task for task in known if available[live.row_of[task]]), None)
