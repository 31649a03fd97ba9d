"""``ports.Index`` in Qdrant's engine embedded in this process: no server, no wire.

Label Studio holds the truth, so the index starts empty and is built anew whenever it is needed.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import qdrant_edge as qe

from ml_backend.adapters.index.changes import Changes
from ml_backend.domain.generation import Array, Floats
from ml_backend.domain.model import SPACE_DIM, LabelState

SPACES = ("raw", "head")
BATCH = 1000
EXACT_BELOW = 20_000
"""Below this many tasks an exact scan takes a millisecond, and no graph has to be built."""
EF = 256
"""Candidates of a graph search: recall 0.99 at k = 50 and 100,000 tasks; the default finds 0.89."""


class EdgeIndex:
    """Nearest neighbours among one project's tasks; safe for many threads, for one process only.

    ``folder`` is emptied when the index is opened. Searches go on while ``build`` makes its successor, and
    what is changed meanwhile is changed in the successor too.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder
        shutil.rmtree(folder, ignore_errors=True)
        self._folder, self._shard = self._create()
        self._changes = Changes(lambda: self._shard)

    def build(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        """Replace everything: task ids (n,), per space (n, SPACE_DIM) unit vectors, states (n,)."""
        with self._changes.building():
            folder, fresh = self._create()
            try:
                for points in _points(tasks, vectors, states):
                    fresh.update(qe.UpdateOperation.upsert_points(points))
                if len(tasks) > EXACT_BELOW:
                    fresh.optimize()
                with self._changes.succeeding(fresh):
                    # the old shard is not closed: searches on it may be under way, the last one frees it
                    folder, self._folder, self._shard = self._folder, folder, fresh
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def upsert(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        """Add or replace these tasks."""
        for points in _points(tasks, vectors, states):
            self._apply(qe.UpdateOperation.upsert_points(points))

    def mark(self, tasks: Sequence[int], state: LabelState) -> None:
        """Set the label state of these tasks; unknown ones are left alone."""
        if len(tasks):
            # by filter, because a list of ids is refused where one of them is unknown
            known = qe.Filter(must=[qe.HasIdCondition(set(map(int, tasks)))])
            self._apply(qe.UpdateOperation.set_payload_by_filter(known, {"state": int(state)}))

    def delete(self, tasks: Sequence[int]) -> None:
        """Forget these tasks."""
        if len(tasks):
            self._apply(qe.UpdateOperation.delete_points(list(map(int, tasks))))

    def neighbours(self, space: str, vector: Floats, k: int, state: LabelState) -> tuple[Array, Floats]:
        """The at most ``k`` nearest tasks in that state: ids (m,) int64, cosines (m,), nearest first."""
        if k <= 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        wanted = qe.Filter(must=[qe.FieldCondition("state", match=qe.MatchValue(int(state)))])
        request = qe.QueryRequest(
            limit=int(k),
            query=qe.Query.Nearest(vector.tolist(), using=space),
            filter=wanted,
            params=qe.SearchParams(hnsw_ef=EF),
        )
        found = self._shard.query(request)
        return (
            np.array([point.id for point in found], np.int64),
            np.array([point.score for point in found], np.float32),
        )

    def vectors(self, space: str, tasks: Sequence[int]) -> dict[int, Floats]:
        """Stored vectors of these tasks; unknown ones are left out."""
        rows = self._shard.retrieve(list(map(int, tasks)), with_payload=False, with_vector=[space])
        return {
            int(row.id): np.array(row.vector[space], np.float32)
            for row in rows
            if isinstance(row.vector, dict) and space in row.vector
        }

    def __len__(self) -> int:
        return int(self._shard.count(qe.CountRequest(exact=True)))

    def close(self) -> None:
        """Free memory and disk; the index can't be used afterwards."""
        with self._changes.lock:
            self._shard.close()
            shutil.rmtree(self._root, ignore_errors=True)

    def _apply(self, change: qe.UpdateOperation) -> None:
        self._changes.make(lambda shard: shard.update(change))

    def _create(self) -> tuple[Path, qe.EdgeShard]:
        folder = self._root / uuid.uuid4().hex
        folder.mkdir(parents=True)
        vectors = {space: qe.EdgeVectorParams(SPACE_DIM, qe.Distance.Dot) for space in SPACES}
        config = qe.EdgeConfig(
            vectors=vectors,
            on_disk_payload=False,
            hnsw_config=qe.HnswIndexConfig(m=16, ef_construct=64, full_scan_threshold=1000),
            optimizers=qe.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1000),
            wal_enabled=False,
        )
        shard = qe.EdgeShard.create(str(folder), config)
        shard.update(qe.UpdateOperation.create_field_index("state", qe.PayloadSchemaType.Integer))
        return folder, shard


def _points(tasks: Array, vectors: Mapping[str, Floats], states: Array) -> Iterator[list[qe.Point]]:
    for start in range(0, len(tasks), BATCH):
        ids, labels = tasks[start : start + BATCH].tolist(), states[start : start + BATCH].tolist()
        rows = {space: found[start : start + BATCH].tolist() for space, found in vectors.items()}
        yield [
            qe.Point(ids[n], {space: found[n] for space, found in rows.items()}, {"state": labels[n]})
            for n in range(len(ids))
        ]
