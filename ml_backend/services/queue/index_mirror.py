"""An index kept equal to a pool's arrays, as far as it answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from ml_backend.domain.errors import StoreError
from ml_backend.domain.generation import Array, Floats
from ml_backend.domain.model import LabelState
from ml_backend.ports import Index
from ml_backend.services.queue.pool import ProjectPool

T = TypeVar("T")
AWAY_SECONDS = 5.0
"""How long an index that did not answer is not asked again: submits wait meanwhile."""


class IndexMirror:
    """Tells an index of every change of a pool, and asks it; the caller holds the pool's lock.

    An index that does not answer costs one wait, then it is left alone for a while. What it did not hear of
    makes it ``stale``: it has to be built anew.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.stale = ""
        """Why the index may lack something; empty while it lacks nothing."""
        self._away_until = 0.0
        self._built: tuple[Array, Array] = (np.empty(0, np.int64), np.empty(0, np.int8))

    def upsert(self, pool: ProjectPool, rows: Array, vectors: Mapping[str, Floats]) -> None:
        """Rows that have got their vectors."""
        kept = {space: vectors[space] for space in pool.searched & vectors.keys()}
        states = pool.teaching_states(rows)
        self._change(lambda: self.index.upsert(pool.ids[rows], kept, states))

    def mark(self, pool: ProjectPool, row: int) -> None:
        """A row whose state may have changed."""
        state = LabelState(int(pool.teaching_states(np.array([row]))[0]))
        self._change(lambda: self.index.mark([int(pool.ids[row])], state))

    def delete(self, tasks: Sequence[int]) -> None:
        """Tasks that are gone."""
        self._change(lambda: self.index.delete(tasks))

    def neighbours(
        self, space: str, vector: Floats, k: int, state: LabelState
    ) -> tuple[Array, Floats] | None:
        """What the index finds; None while it does not answer."""
        return self._asked(lambda: self.index.neighbours(space, vector, k, state))

    def build(self, pool: ProjectPool, also: frozenset[str] = frozenset()) -> None:
        """Build the index from the arrays, without holding up the pool; ``mark_changes`` follows.

        ``also``: the spaces that another pool goes on searching until this one takes its place. Takes no lock
        of the caller's. An index that can't be built is not asked before the next attempt.
        """
        with pool.lock:
            rows = pool.alive()
            there = {"raw": pool.raw, "head": pool.head}
            spaces = pool.searched | also
            vectors = {
                space: found[rows] for space, found in there.items() if space in spaces and found is not None
            }
            states = pool.teaching_states(rows)
        try:
            self.index.build(pool.ids[rows], vectors, states)
        except StoreError as error:
            self.stale, self._away_until = error.message, math.inf
        self._built = (rows, states)

    def mark_changes(self, pool: ProjectPool) -> None:
        """Tell the index which states changed since it was built."""
        rows, states = self._built
        now = pool.teaching_states(rows)
        for state in LabelState:
            if len(changed := rows[(now != states) & (now == state)]):
                self._change(lambda: self.index.mark(pool.ids[changed].tolist(), state))  # noqa: B023

    def _change(self, change: Callable[[], object]) -> None:
        if self._asked(lambda: (change(),)) is None:
            self.stale = self.stale or "The index did not hear of a change."

    def _asked(self, ask: Callable[[], T]) -> T | None:
        """The answer; None where there is none, or was none a moment ago."""
        if time.monotonic() < self._away_until:
            return None
        try:
            return ask()
        except StoreError as error:
            self._away_until = time.monotonic() + AWAY_SECONDS
            self.stale = error.message
            return None
