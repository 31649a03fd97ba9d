"""An index kept equal to a pool's arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ml_backend.domain.generation import Array, Floats
from ml_backend.domain.model import LabelState
from ml_backend.ports import Index
from ml_backend.services.queue.pool import ProjectPool


class IndexMirror:
    """Tells an index of every change of a pool; the caller holds the pool's lock unless said otherwise."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._built: tuple[Array, Array] = (np.empty(0, np.int64), np.empty(0, np.int8))

    def upsert(self, pool: ProjectPool, rows: Array, vectors: Mapping[str, Floats]) -> None:
        """Rows that have got their vectors."""
        kept = {space: vectors[space] for space in pool.searched & vectors.keys()}
        self.index.upsert(pool.ids[rows], kept, pool.teaching_states(rows))

    def mark(self, pool: ProjectPool, row: int) -> None:
        """A row whose state may have changed."""
        state = LabelState(int(pool.teaching_states(np.array([row]))[0]))
        self.index.mark([int(pool.ids[row])], state)

    def delete(self, tasks: Sequence[int]) -> None:
        """Tasks that are gone."""
        self.index.delete(tasks)

    def build(self, pool: ProjectPool, also: frozenset[str] = frozenset()) -> None:
        """Build the index from the arrays, without holding up the pool; ``mark_changes`` follows.

        ``also``: the spaces that another pool goes on searching until this one takes its place.
        """
        with pool.lock:
            rows = pool.alive()
            there = {"raw": pool.raw, "head": pool.head}
            spaces = pool.searched | also
            vectors = {
                space: found[rows] for space, found in there.items() if space in spaces and found is not None
            }
            states = pool.teaching_states(rows)
        self.index.build(pool.ids[rows], vectors, states)
        self._built = (rows, states)

    def mark_changes(self, pool: ProjectPool) -> None:
        """Tell the index which states changed since it was built."""
        rows, states = self._built
        now = pool.teaching_states(rows)
        for state in LabelState:
            if len(changed := rows[(now != states) & (now == state)]):
                self.index.mark(pool.ids[changed].tolist(), state)
