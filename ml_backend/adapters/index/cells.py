"""``ports.Index`` in numpy for very many tasks: an inverted file (Jégou, Douze & Schmid 2011).

A graph finds neighbours in half a millisecond but takes a quarter of an hour to build over a million tasks,
on every start and for every new generation. Cells are built in seconds and are fast enough.
"""

# Not faiss's IndexIVFFlat (bench/faiss_ivf.py, a million tasks): it answers 1.6 times as fast where half of
# the tasks are in the state asked for, ten times as slowly where few are, and builds twice as slowly; bitmaps
# per state, deletions and what changes during a build would still be ours to write.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ml_backend.adapters.index.changes import Changes
from ml_backend.domain.generation import Array, Floats
from ml_backend.domain.model import LabelState
from ml_backend.numerics.exact_knn import largest
from strategies.clusters import centres, nearest

EXACT = 20_000
"""Tasks in a state up to which all of them are compared."""
MOST_CELLS = 1024
PROBED = 48
"""Cells of the nearest centres that are searched first."""
ENOUGH = 20
"""Times as many tasks in the wanted state are compared as are asked for, in further cells if need be."""
GONE = -1


@dataclass(slots=True)
class _Space:
    """Vectors sorted by cell: cell c holds the places ``starts[c]`` to ``starts[c + 1]``."""

    centres: Floats
    starts: Array
    rows: Array  # place → row of the store
    vectors: Floats  # by place
    place: Array  # row of the store → place


@dataclass(slots=True)
class _Store:
    """One build, and what came later: rows are only ever added, what is replaced is gone."""

    ids: Array
    states: Array
    spaces: dict[str, _Space]
    row_of: dict[int, int]
    added: dict[str, tuple[Array, Floats]] = field(default_factory=dict)
    """Rows in rising order, and their vectors."""

    def add(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        first, count = len(self.ids), len(tasks)
        self.forget(tasks.tolist())
        self.ids = np.concatenate([self.ids, np.asarray(tasks, np.int64)])
        self.states = np.concatenate([self.states, np.asarray(states, np.int8)])
        self.row_of.update(zip(tasks.tolist(), range(first, first + count), strict=True))
        for space, found in vectors.items():
            rows, fresh = np.arange(first, first + count), np.asarray(found, np.float32)
            if (old := self.added.get(space)) is not None:
                rows, fresh = np.concatenate([old[0], rows]), np.concatenate([old[1], fresh])
            self.added[space] = rows, fresh

    def mark(self, tasks: Sequence[int], state: LabelState) -> None:
        self.states[self._rows(tasks)] = state

    def forget(self, tasks: Sequence[int]) -> None:
        self.states[self._rows(tasks)] = GONE
        for task in tasks:
            self.row_of.pop(int(task), None)

    def _rows(self, tasks: Sequence[int]) -> list[int]:
        return [self.row_of[int(task)] for task in tasks if int(task) in self.row_of]

    def vector(self, space: str, row: int) -> Floats | None:
        """The row's vector; None where it has none in that space."""
        built, added = self.spaces.get(space), self.added.get(space)
        if built is not None and row < len(built.place):
            return np.asarray(built.vectors[built.place[row]])
        if (
            added is None
            or (at := int(np.searchsorted(added[0], row))) == len(added[0])
            or added[0][at] != row
        ):
            return None
        return np.asarray(added[1][at])

    def candidates(
        self, space: str, vector: Floats, k: int, state: LabelState
    ) -> Iterator[tuple[Array, Floats]]:
        """Rows in that state with their similarities."""
        if (added := self.added.get(space)) is not None:
            mine = self.states[added[0]] == state
            yield added[0][mine], added[1][mine] @ vector
        built = self.spaces.get(space)
        if built is None:
            return
        there = self.states[: len(built.place)] == state
        if np.count_nonzero(there) <= EXACT:
            rows = np.flatnonzero(there)
            yield rows, built.vectors[built.place[rows]] @ vector
            return
        seen = 0
        for number, cell in enumerate(np.argsort(-(built.centres @ vector)).tolist()):
            if number >= PROBED and seen >= ENOUGH * k:
                return
            places = slice(built.starts[cell], built.starts[cell + 1])
            rows = built.rows[places]
            good = there[rows]
            seen += int(good.sum())
            yield rows[good], (built.vectors[places] @ vector)[good]


class CellIndex:
    """Nearest neighbours among one project's tasks; safe for many threads, in memory only.

    Searches go on while ``build`` makes its successor, and what is changed meanwhile is changed in the
    successor too.
    """

    def __init__(self) -> None:
        self._store = _store(np.empty(0, np.int64), {}, np.empty(0, np.int8))
        self._changes = Changes(lambda: self._store)

    def build(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        """Replace everything: task ids (n,), per space (n, d) unit vectors, states (n,)."""
        with self._changes.building():
            fresh = _store(tasks, vectors, states)
            with self._changes.succeeding(fresh):
                self._store = fresh

    def upsert(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        """Add or replace these tasks."""
        kept = {space: np.array(found, np.float32) for space, found in vectors.items()}
        self._changes.make(lambda store: store.add(np.asarray(tasks, np.int64), kept, np.asarray(states)))

    def mark(self, tasks: Sequence[int], state: LabelState) -> None:
        """Set the label state of these tasks; unknown ones are left alone."""
        self._changes.make(lambda store: store.mark(tasks, state))

    def delete(self, tasks: Sequence[int]) -> None:
        """Forget these tasks."""
        self._changes.make(lambda store: store.forget(tasks))

    def neighbours(self, space: str, vector: Floats, k: int, state: LabelState) -> tuple[Array, Floats]:
        """The at most ``k`` nearest tasks in that state: ids (m,) int64, cosines (m,), nearest first."""
        with self._changes.lock:
            store = self._store
            found = list(store.candidates(space, vector, k, state)) if k > 0 else []
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        rows, near = np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found])
        [best], [cosines] = largest(near[None], k)
        return store.ids[rows[best]], cosines.astype(np.float32)

    def vectors(self, space: str, tasks: Sequence[int]) -> dict[int, Floats]:
        """Stored vectors of these tasks; unknown ones are left out."""
        with self._changes.lock:
            rows = {int(task): self._store.row_of.get(int(task), -1) for task in tasks}
            found = {task: self._store.vector(space, row) for task, row in rows.items() if row >= 0}
        return {task: vector for task, vector in found.items() if vector is not None}

    def __len__(self) -> int:
        return len(self._store.row_of)

    def close(self) -> None:
        """Free the memory."""
        self._store = _store(np.empty(0, np.int64), {}, np.empty(0, np.int8))


def _store(tasks: Array, vectors: Mapping[str, Floats], states: Array) -> _Store:
    ids = np.asarray(tasks, np.int64)
    return _Store(
        ids,
        np.array(states, np.int8),
        {space: _space(np.asarray(found, np.float32)) for space, found in vectors.items() if len(found)},
        {task: row for row, task in enumerate(ids.tolist())},
    )


def _space(vectors: Floats) -> _Space:
    count = min(MOST_CELLS, max(1, round(len(vectors) ** 0.5)))
    middles = centres(vectors, count, np.random.default_rng(0))
    cell, _ = nearest(vectors, middles)
    rows = np.argsort(cell, kind="stable")
    starts = np.searchsorted(cell[rows], np.arange(len(middles) + 1))
    place = np.empty(len(rows), np.int64)
    place[rows] = np.arange(len(rows))
    return _Space(middles, starts, rows, vectors[rows], place)
