"""``ports.Index`` by brute force, for simulations and tests: nothing is left out, nothing is on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ml_backend.adapters.index.changes import Changes
from ml_backend.domain.generation import Array, Floats
from ml_backend.domain.model import LabelState
from ml_backend.numerics.exact_knn import largest


@dataclass(slots=True)
class _Tasks:
    """Rows of all tasks; NaN where a task has no vector in a space."""

    ids: Array = field(default_factory=lambda: np.empty(0, np.int64))
    states: Array = field(default_factory=lambda: np.empty(0, np.int8))
    spaces: dict[str, Floats] = field(default_factory=dict)
    row_of: dict[int, int] = field(default_factory=dict)

    def add(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        self.forget(tasks.tolist())
        for space, found in vectors.items():
            self.spaces.setdefault(space, _nowhere(len(self.ids), found.shape[1]))
        for space, old in self.spaces.items():
            fresh = vectors.get(space, _nowhere(len(tasks), old.shape[1]))
            self.spaces[space] = np.concatenate([old, fresh], dtype=np.float32)
        self.row_of.update(zip(tasks.tolist(), range(len(self.ids), len(self.ids) + len(tasks)), strict=True))
        self.ids = np.concatenate([self.ids, tasks], dtype=np.int64)
        self.states = np.concatenate([self.states, states], dtype=np.int8, casting="unsafe")

    def mark(self, tasks: Sequence[int], state: LabelState) -> None:
        self.states[self.rows(tasks)] = state

    def forget(self, tasks: Sequence[int]) -> None:
        if gone := self.rows(tasks):
            self.ids, self.states = np.delete(self.ids, gone), np.delete(self.states, gone)
            self.spaces = {space: np.delete(rows, gone, axis=0) for space, rows in self.spaces.items()}
            self.row_of = {task: row for row, task in enumerate(self.ids.tolist())}

    def rows(self, tasks: Sequence[int]) -> list[int]:
        return [self.row_of[int(task)] for task in tasks if int(task) in self.row_of]


class ExactIndex:
    """Nearest neighbours among one project's tasks by one product with all of them; safe for many threads."""

    def __init__(self) -> None:
        self._tasks = _Tasks()
        self._changes = Changes(lambda: self._tasks)

    def build(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        """Replace everything: task ids (n,), per space (n, d) unit vectors, states (n,)."""
        with self._changes.building():
            fresh = _Tasks()
            fresh.add(np.asarray(tasks), dict(vectors.items()), states)
            with self._changes.succeeding(fresh):
                self._tasks = fresh

    def upsert(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        """Add or replace these tasks."""
        self._changes.make(lambda known: known.add(np.asarray(tasks), vectors, states))

    def mark(self, tasks: Sequence[int], state: LabelState) -> None:
        """Set the label state of these tasks; unknown ones are left alone."""
        self._changes.make(lambda known: known.mark(tasks, state))

    def delete(self, tasks: Sequence[int]) -> None:
        """Forget these tasks."""
        self._changes.make(lambda known: known.forget(tasks))

    def neighbours(self, space: str, vector: Floats, k: int, state: LabelState) -> tuple[Array, Floats]:
        """The at most ``k`` nearest tasks in that state: ids (m,) int64, cosines (m,), nearest first."""
        with self._changes.lock:
            known = self._tasks
            rows = known.spaces.get(space)
            if rows is None:
                return np.empty(0, np.int64), np.empty(0, np.float32)
            near = rows @ vector
            there = (known.states == state) & ~np.isnan(near)
            ids = known.ids
        [best], [cosines] = largest(np.where(there, near, -np.inf)[None], min(k, np.count_nonzero(there)))
        return ids[best], cosines

    def vectors(self, space: str, tasks: Sequence[int]) -> dict[int, Floats]:
        """Stored vectors of these tasks; unknown ones are left out."""
        with self._changes.lock:
            known = self._tasks
            rows = known.spaces.get(space)
            if rows is None:
                return {}
            found = {int(known.ids[row]): rows[row] for row in known.rows(tasks)}
        return {task: vector for task, vector in found.items() if not np.isnan(vector[0])}

    def __len__(self) -> int:
        return len(self._tasks.ids)

    def close(self) -> None:
        """Free the memory."""
        self._tasks = _Tasks()


def _nowhere(count: int, dim: int) -> Floats:
    return np.full((count, dim), np.nan, np.float32)
