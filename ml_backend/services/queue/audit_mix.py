"""Mixes an audit sample into what people are served, so that nobody can tell which ones are audits."""

from __future__ import annotations

import random
from itertools import islice

import numpy as np
import numpy.typing as npt

from ml_backend.domain.audit_sample import AuditSample
from ml_backend.domain.model import TaskId
from ml_backend.services.queue.pool import ProjectPool

AMONG = 256
"""So many of the next audits are looked at; one that is suggested as the class at hand goes first."""


class Mixing:
    """The audits still to be answered, in the sample's order; about ``share`` of all that is served.

    Which turn is an audit is a coin's decision: every tenth could be counted. Among the next few audits one
    that would get the label that was just given goes first, which takes people less time; what counts are
    all audits up to the first that is not answered, so it stays a random sample. Where suggestions are hidden
    the sample's order is kept, since another one would give them away.
    """

    def __init__(self, sample: AuditSample | None = None) -> None:
        self._waiting = [] if sample is None else sample.audits[::-1]
        self._suggested = {} if sample is None or sample.hidden else sample.suggestions
        self._share = 0.0 if sample is None else sample.share
        self._coin = random.Random(None if sample is None else sample.seed)

    def __len__(self) -> int:
        return len(self._waiting)

    def due(
        self, pool: ProjectPool, available: npt.NDArray[np.bool_], given: tuple[str, ...] = ()
    ) -> TaskId | None:
        """The audit that comes next if one is due now; ``available`` (n,) rows may be served.

        ``given``: the labels of the answer before.
        """
        while self._waiting and not pool.is_open(self._waiting[-1]):
            self._waiting.pop()  # answered; where its answer is deleted again, the next reload finds it
        if not self._waiting or self._coin.random() >= self._share:
            return None
        free = (t for t in reversed(self._waiting) if t in pool.row_of and available[pool.row_of[t]])
        ahead = list(islice(free, AMONG))
        same = (task for task in ahead if given and self._suggested.get(task) == given)
        return next(same, ahead[0] if ahead else None)
