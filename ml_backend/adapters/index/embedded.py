"""``ports.Index`` without a server: Qdrant's embedded engine, and cells where its graph takes too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_backend.adapters.index.cells import CellIndex
from ml_backend.adapters.index.changes import Changes
from ml_backend.adapters.index.edge import EdgeIndex
from ml_backend.domain.generation import Array, Floats
from ml_backend.domain.model import LabelState

GRAPH_UP_TO = 150_000
"""Tasks up to which Qdrant's graph is built: half a minute on two cores."""

Engine = EdgeIndex | CellIndex


class EmbeddedIndex:
    """Nearest neighbours among one project's tasks, in the engine that suits their number at each build.

    Safe for many threads, for one process only; ``folder`` is emptied when Qdrant's engine is built.
    """

    def __init__(self, folder: Path, graph_up_to: int = GRAPH_UP_TO) -> None:
        self._folder, self._most = folder, graph_up_to
        self._engine: Engine = CellIndex()  # nothing to make on disk before the first build
        self._changes = Changes(lambda: self._engine)
        self._retired: Engine | None = None

    def build(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        """Replace everything: task ids (n,), per space (n, SPACE_DIM) unit vectors, states (n,)."""
        with self._changes.building():
            kind = CellIndex if len(tasks) > self._most else EdgeIndex
            if isinstance(self._engine, kind):
                self._engine.build(tasks, vectors, states)
                return
            if self._retired is not None:
                self._retired.close()
            fresh: Engine = CellIndex() if kind is CellIndex else EdgeIndex(self._folder)
            fresh.build(tasks, vectors, states)
            with self._changes.succeeding(fresh):
                # closed at the next change of engines: searches on it may be under way
                self._retired, self._engine = self._engine, fresh

    def upsert(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        """Add or replace these tasks."""
        self._changes.make(lambda engine: engine.upsert(tasks, vectors, states))

    def mark(self, tasks: Sequence[int], state: LabelState) -> None:
        """Set the label state of these tasks; unknown ones are left alone."""
        self._changes.make(lambda engine: engine.mark(tasks, state))

    def delete(self, tasks: Sequence[int]) -> None:
        """Forget these tasks."""
        self._changes.make(lambda engine: engine.delete(tasks))

    def neighbours(self, space: str, vector: Floats, k: int, state: LabelState) -> tuple[Array, Floats]:
        """The at most ``k`` nearest tasks in that state: ids (m,) int64, cosines (m,), nearest first."""
        return self._engine.neighbours(space, vector, k, state)

    def vectors(self, space: str, tasks: Sequence[int]) -> dict[int, Floats]:
        """Stored vectors of these tasks; unknown ones are left out."""
        return self._engine.vectors(space, tasks)

    def __len__(self) -> int:
        return len(self._engine)

    def close(self) -> None:
        """Free memory and disk; the index can't be used afterwards."""
        with self._changes.lock:
            self._engine.close()
            if self._retired is not None:
                self._retired.close()
