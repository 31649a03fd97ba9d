"""``ports.Index`` on a Qdrant server: one collection per build, behind an alias switched atomically."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import numpy as np
from httpx import Request, Response, Timeout, TimeoutException
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_chain,
    wait_fixed,
)

from ml_backend.adapters.index.changes import Changes
from ml_backend.domain.deadline import left
from ml_backend.domain.errors import StoreError
from ml_backend.domain.generation import Array, Floats
from ml_backend.domain.model import SPACE_DIM, LabelState

SPACES = ("raw", "head")
BATCH = 1000
EF = 256
"""Candidates of a graph search; see ``index_edge``."""
WAITS = (0.1, 0.5, 2.0)
"""Seconds before a request is sent again that did not reach the server; all of ours may come twice."""
PATIENCE = 10.0
"""Seconds for one request outside of any deadline."""
ABANDONED_S = 3600
"""A collection that no alias names after this many seconds was left by a killed build."""

T = TypeVar("T")
Change = Callable[[str], object]
"""Applies one change to the named collection."""


class QdrantIndex:
    """Nearest neighbours among one project's tasks, on the server at ``url`` under the alias ``name``.

    What an earlier process built is kept, and searches go on while ``build`` makes its successor.
    ``:memory:`` as ``url`` is qdrant-client's local mode: for tests only, it takes 0.2 s a search at 10,000
    tasks. Raises StoreError where the server does not answer or refuses.
    """

    def __init__(self, url: str, name: str, api_key: str = "", *, grpc: bool = False) -> None:
        self._url, self._name = url, name
        self._changes = Changes(lambda: name)  # the alias, whatever collection is behind it
        self._there = False
        with self._server():
            self._client = QdrantClient(
                location=url,
                api_key=api_key or None,
                prefer_grpc=grpc,
                timeout=int(PATIENCE),
                check_compatibility=False,
            )
        if url != ":memory:":
            self._client.http.client.add_middleware(_in_time)

    def build(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        """Replace everything: task ids (n,), per space (n, SPACE_DIM) unit vectors, states (n,)."""
        with self._changes.building(), self._server():
            fresh = self._create()
            try:
                for batch in _batches(tasks, vectors, states):
                    retried(partial(self._client.upsert, fresh, batch, wait=True))
                with self._changes.succeeding(fresh):
                    old = self._current()
                    self._switch(fresh)
                    self._there = True
            except BaseException:
                self._client.delete_collection(fresh)
                raise
            self._sweep(old)

    def upsert(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        """Add or replace these tasks."""
        for batch in _batches(tasks, vectors, states):
            self._apply(partial(self._client.upsert, points=batch, wait=True))

    def mark(self, tasks: Sequence[int], state: LabelState) -> None:
        """Set the label state of these tasks; unknown ones are left alone."""
        if len(tasks):
            # by filter, because a list of ids is refused where one of them is unknown
            known = models.Filter(must=[models.HasIdCondition(has_id=_ids(tasks))])
            payload = {"state": int(state)}
            self._apply(partial(self._client.set_payload, payload=payload, points=known, wait=True))

    def delete(self, tasks: Sequence[int]) -> None:
        """Forget these tasks."""
        if len(tasks):
            ids = models.PointIdsList(points=_ids(tasks))
            self._apply(partial(self._client.delete, points_selector=ids, wait=True))

    def neighbours(self, space: str, vector: Floats, k: int, state: LabelState) -> tuple[Array, Floats]:
        """The at most ``k`` nearest tasks in that state: ids (m,) int64, cosines (m,), nearest first."""
        if k <= 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        match = models.FieldCondition(key="state", match=models.MatchValue(value=int(state)))
        with self._server():
            self._exist()
            found = retried(
                partial(
                    self._client.query_points,
                    self._name,
                    query=vector.tolist(),
                    using=space,
                    query_filter=models.Filter(must=[match]),
                    limit=int(k),
                    search_params=models.SearchParams(hnsw_ef=EF),
                    with_payload=False,
                    timeout=math.ceil(left(PATIENCE)),  # gRPC keeps to this one, HTTP to ``_in_time``
                )
            ).points
        return (
            np.array([point.id for point in found], np.int64),
            np.array([point.score for point in found], np.float32),
        )

    def vectors(self, space: str, tasks: Sequence[int]) -> dict[int, Floats]:
        """Stored vectors of these tasks; unknown ones are left out."""
        if not len(tasks):
            return {}
        with self._server():
            self._exist()
            rows = self._client.retrieve(self._name, _ids(tasks), with_payload=False, with_vectors=[space])
        return {
            int(row.id): np.array(row.vector[space], np.float32)
            for row in rows
            if isinstance(row.vector, dict) and space in row.vector
        }

    def __len__(self) -> int:
        with self._server():
            if retried(self._current) is None:
                return 0  # the server came back without it
            return self._client.count(self._name, exact=True).count

    def drop(self) -> None:
        """Delete the index on the server; it can't be used afterwards."""
        with self._server():
            if (current := retried(self._current)) is not None:
                self._client.delete_collection(current)  # and its alias with it
        self.close()

    def close(self) -> None:
        """Close the connection; the server keeps the index."""
        self._client.close()

    def _apply(self, change: Change) -> None:
        with self._server():
            self._exist()
            self._changes.make(lambda collection: retried(partial(change, collection)))

    def _exist(self) -> None:
        """Make an empty collection where nothing was ever built; a server that is away is met here first."""
        if not self._there and retried(self._current) is None:
            self._switch(self._create())
        self._there = True

    def _create(self) -> str:
        collection = f"{self._name}.{int(time.time())}.{uuid.uuid4().hex[:8]}"
        self._client.create_collection(
            collection,
            vectors_config={
                space: models.VectorParams(size=SPACE_DIM, distance=models.Distance.DOT) for space in SPACES
            },
        )
        self._client.create_payload_index(collection, "state", models.PayloadSchemaType.INTEGER)
        return collection

    def _current(self) -> str | None:
        aliases = self._client.get_aliases().aliases
        return next((alias.collection_name for alias in aliases if alias.alias_name == self._name), None)

    def _switch(self, fresh: str) -> None:
        """Let the alias name ``fresh``, in one step."""
        create = models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=fresh, alias_name=self._name)
        )
        delete = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=self._name))
        self._client.update_collection_aliases([delete, create] if self._current() else [create])

    def _sweep(self, old: str | None) -> None:
        """Drop the collection ``old`` and what killed builds left."""
        named = {alias.collection_name for alias in self._client.get_aliases().aliases}
        ours = re.compile(re.escape(self._name) + r"\.(\d+)\.[0-9a-f]{8}")
        for name in {collection.name for collection in self._client.get_collections().collections} - named:
            made = ours.fullmatch(name)
            if name == old or (made and time.time() - int(made[1]) > ABANDONED_S):
                self._client.delete_collection(name)

    @contextmanager
    def _server(self) -> Iterator[None]:
        try:
            yield
        except (ApiException, ValueError) as error:
            raise StoreError(
                f"The Qdrant server at {self._url} can't do that: {str(error)[:300]}.",
                "Check RUSH_QDRANT_URL and that the server runs; the index is rebuilt once it answers.",
            ) from error


def _in_time(request: Request, send: Callable[[Request], Response]) -> Response:
    """Send an HTTP request that waits no longer than the thread may."""
    request.extensions["timeout"] = Timeout(left(PATIENCE)).as_dict()
    return send(request)


def retried(request: Callable[[], T]) -> T:
    """What the request returns, sent again where the server can't be reached or is overloaded.

    Not where it hangs: it would be waited for once more.
    """
    tries = Retrying(
        retry=retry_if_exception(_passing),
        wait=wait_chain(*map(wait_fixed, WAITS)),
        stop=stop_after_attempt(1 + len(WAITS)) | stop_before_delay(left(math.inf)),
        reraise=True,
    )
    return tries(request)


def _passing(error: BaseException) -> bool:
    overloaded = isinstance(error, UnexpectedResponse) and error.status_code in (429, 502, 503, 504)
    unreached = isinstance(error, ResponseHandlingException) and not isinstance(
        error.source, TimeoutException
    )
    return overloaded or unreached


def _ids(tasks: Sequence[int]) -> list[int | str]:
    return [int(task) for task in tasks]


def _batches(tasks: Array, vectors: Mapping[str, Floats], states: Array) -> Iterator[models.Batch]:
    for start in range(0, len(tasks), BATCH):
        part = slice(start, start + BATCH)
        yield models.Batch(
            ids=tasks[part].tolist(),
            vectors={space: rows[part].tolist() for space, rows in vectors.items()},
            payloads=[{"state": state} for state in states[part].tolist()],
        )
