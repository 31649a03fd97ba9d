"""Faiss's inverted file against ours (``adapters/index/cells.py``): filtered neighbours of very many tasks.

``pip install faiss-cpu && python bench/faiss_ivf.py [COUNT]`` prints a table. Faiss is no dependency of Rush.
The vectors are random clusters of 64 dimensions, half of the tasks are open, k = 50. Each engine runs in a
process of its own, so that its memory is its own. Both probe 48 of their 1024 cells, and all of them where
few tasks are in the state that is asked for.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import percentiles
from bench.index import resident_mb
from ml_backend.adapters.index.cells import EXACT, MOST_CELLS, PROBED, CellIndex
from ml_backend.domain.generation import Array, Floats, normalise
from ml_backend.domain.model import SPACE_DIM, LabelState

K, QUERIES, TRUE = 50, 300, 100
CHANGES, ADDED = 100, 2000
RARE = 1000
"""Tasks in a state that few are in: as many as have been labelled."""


def data(count: int) -> tuple[Floats, Array]:
    """Unit vectors and their states: half open, ``RARE`` labelled, the others skipped."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, SPACE_DIM), np.float32)
    vectors = centres[rng.integers(0, 200, count)]
    vectors += 0.7 * rng.standard_normal((count, SPACE_DIM), np.float32)
    states = np.where(rng.random(count) < 0.5, LabelState.OPEN, LabelState.SKIPPED).astype(np.int8)
    states[rng.permutation(count)[:RARE]] = LabelState.LABELLED
    return normalise(vectors), states


class Faiss:
    """``IndexIVFFlat`` with one bitmap per state as a selector."""

    def __init__(self) -> None:
        import faiss

        self._faiss = faiss
        faiss.omp_set_num_threads(1)  # as a web process is given

    def build(self, tasks: Array, vectors: Floats, states: Array) -> None:
        cells = min(MOST_CELLS, max(1, round(len(tasks) ** 0.5)))
        self._coarse = self._faiss.IndexFlatIP(SPACE_DIM)
        self._index = self._faiss.IndexIVFFlat(
            self._coarse, SPACE_DIM, cells, self._faiss.METRIC_INNER_PRODUCT
        )
        self._index.train(vectors)
        self._index.add(vectors)  # ids are rows
        self._bits = {state: np.packbits(states == state, bitorder="little") for state in LabelState}

    def neighbours(self, vector: Floats, state: LabelState) -> Array:
        rows = self._index.ntotal
        selector = self._faiss.IDSelectorBitmap(rows, self._faiss.swig_ptr(self._bits[state]))
        few = np.bitwise_count(self._bits[state]).sum() <= EXACT
        probed = self._index.nlist if few else PROBED
        wanted = self._faiss.SearchParametersIVF(sel=selector, nprobe=probed)
        found = self._index.search(vector[None], K, params=wanted)[1][0]
        return np.asarray(found[found >= 0] + 1)

    def mark(self, row: int, state: LabelState) -> None:
        byte, bit = row >> 3, np.uint8(1 << (row & 7))
        for each, bits in self._bits.items():
            if each == state:
                bits[byte] |= bit
            else:
                bits[byte] &= ~bit

    def upsert(self, vectors: Floats, state: LabelState) -> None:
        first = self._index.ntotal
        self._index.add(vectors)
        for each, bits in self._bits.items():
            self._bits[each] = np.resize(
                np.append(bits, np.zeros(1 + len(vectors) // 8, np.uint8)), -(-self._index.ntotal // 8)
            )
        for row in range(first, self._index.ntotal):
            self.mark(row, state)


class Ours:
    """``CellIndex`` behind the same calls."""

    def __init__(self) -> None:
        self._index = CellIndex()

    def build(self, tasks: Array, vectors: Floats, states: Array) -> None:
        self._index.build(tasks, {"raw": vectors}, states)
        self._next = len(tasks) + 1

    def neighbours(self, vector: Floats, state: LabelState) -> Array:
        return self._index.neighbours("raw", vector, K, state)[0]

    def mark(self, row: int, state: LabelState) -> None:
        self._index.mark([row + 1], state)

    def upsert(self, vectors: Floats, state: LabelState) -> None:
        tasks = np.arange(self._next, self._next + len(vectors))
        self._next += len(vectors)
        self._index.upsert(tasks, {"raw": vectors}, np.full(len(tasks), state))


ENGINES: dict[str, Callable[[], Any]] = {"ours": Ours, "faiss": Faiss}


def measure(engine: str, count: int) -> dict[str, str]:
    """All figures of one engine."""
    vectors, states = data(count)
    rng, index, before = np.random.default_rng(1), ENGINES[engine](), resident_mb()
    began = time.perf_counter()
    index.build(np.arange(1, count + 1), vectors, states)
    build = time.perf_counter() - began
    memory = resident_mb() - before
    queries = rng.permutation(count)[:QUERIES]
    found = {"build": f"{build:.1f} s", "memory": f"{memory:,.0f} MB"}
    for state in (LabelState.OPEN, LabelState.LABELLED):
        times = spent(lambda row, state=state: index.neighbours(vectors[row], state), queries)
        right = recall(index, vectors, states, queries[:TRUE], state)
        found[f"50 nearest, {state.name.lower()}"] = f"{shown(times)}, recall {right:.3f}"
    marked = rng.permutation(count)[:CHANGES]
    found["mark one"] = shown(spent(lambda row: index.mark(row, LabelState.LABELLED), marked))
    states[marked] = LabelState.LABELLED
    fresh = normalise(rng.standard_normal((ADDED, SPACE_DIM), np.float32))
    singly = fresh[:CHANGES]
    found["add one"] = shown(
        spent(lambda n: index.upsert(singly[n : n + 1], LabelState.OPEN), np.arange(CHANGES))
    )
    index.upsert(fresh[CHANGES:], LabelState.OPEN)
    vectors, states = (
        np.concatenate([vectors, fresh]),
        np.append(states, np.full(ADDED, LabelState.OPEN, np.int8)),
    )
    right = recall(index, vectors, states, np.arange(count, count + ADDED, ADDED // TRUE), LabelState.OPEN)
    found["after 100 marks and 2,000 additions, of the added"] = f"recall {right:.3f}"
    return found


def spent(action: Callable[[int], object], items: Array) -> list[float]:
    """Seconds of each."""
    took = []
    for item in items.tolist():
        began = time.perf_counter()
        action(item)
        took.append(time.perf_counter() - began)
    return took


def shown(seconds: list[float]) -> str:
    """p50 / p95."""
    found = percentiles(seconds)
    return f"{found['p50']:.2f} / {found['p95']:.2f} ms"


def recall(index: Any, vectors: Floats, states: Array, queries: Array, state: LabelState) -> float:
    """Share of the true nearest ones in that state that are found."""
    there, hits, wanted = np.flatnonzero(states == state), 0, 0
    near = vectors[queries] @ vectors[there].T
    for query, row in zip(queries.tolist(), near, strict=True):
        best = there[np.argpartition(-row, min(K, len(row)) - 1)[:K]] + 1
        hits += len(np.intersect1d(best, index.neighbours(vectors[query], state)))
        wanted += len(best)
    return hits / wanted


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1_000_000)
    count = parser.parse_args().count
    found = {}
    for engine in ENGINES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[engine] = pool.submit(measure, engine, count).result()
    print(f"| {count:,} tasks | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for what in found["ours"]:
        print(f"| {what} | {' | '.join(figures[what] for figures in found.values())} |")


if __name__ == "__main__":
    main()
