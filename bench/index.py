"""Filtered nearest neighbours (k = 50, half of the tasks labelled) in the embedded index and in exact numpy.

``python bench/index.py [--out FILE]``; the vectors are random clusters: only number and shape count.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import percentiles, report
from ml_backend.adapters.index.edge import EdgeIndex
from ml_backend.domain.generation import Array, Floats, normalise
from ml_backend.domain.model import SPACE_DIM, LabelState

K, QUERIES = 50, 500


def measure(count: int) -> dict[str, Any]:
    """All figures at ``count`` tasks; in a process of its own, so that the memory is the index's."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, SPACE_DIM))
    vectors = normalise(centres[rng.integers(0, 200, count)] + 0.7 * rng.normal(size=(count, SPACE_DIM)))
    tasks, states = np.arange(1, count + 1), rng.integers(0, 2, count)
    spaces = {"raw": vectors, "head": np.ascontiguousarray(vectors[:, ::-1])}
    folder = Path(tempfile.mkdtemp())
    try:
        index = EdgeIndex(folder / "index")
        before = resident_mb()
        started = time.perf_counter()
        index.build(tasks, spaces, states)
        figures: dict[str, Any] = {
            "build_s": round(time.perf_counter() - started, 2),
            "resident_mb": round(resident_mb() - before),
            "disk_mb": round(
                sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()) / 1e6
            ),
        }
        queries = rng.choice(count, QUERIES, replace=False)
        figures["search"] = search(index, vectors, states, queries)
        marked, fresh = rng.permutation(count)[: count // 5], iter(range(count + 1, 2 * count))
        one = {space: rows[:1] for space, rows in spaces.items()}
        figures["mark_ms"] = timed(lambda n: index.mark([int(tasks[n])], LabelState.LABELLED), marked)
        states[marked] = LabelState.LABELLED
        figures["upsert_ms"] = timed(
            lambda _: index.upsert(np.array([next(fresh)]), one, np.array([LabelState.SKIPPED])), queries
        )
        figures[f"search_after_{len(marked)}_marks"] = search(index, vectors, states, queries)
        figures["search_during_build_ms"] = during_build(index, tasks, spaces, states)
        index.close()
    finally:
        shutil.rmtree(folder)
    return figures


def search(index: EdgeIndex, vectors: Floats, states: Array, queries: Array) -> dict[str, Any]:
    """Times of the index, of numpy, and of the index in turns with numpy; share of true neighbours found.

    In turns, because numpy's idle threads keep the cores busy unless OPENBLAS_NUM_THREADS is 1.
    """
    away = np.where(states == LabelState.OPEN, 0.0, -4.0).astype(np.float32)

    def scan(query: int) -> Array:
        near = vectors @ vectors[query] + away
        best = np.argpartition(-near, K)[:K]
        return np.asarray(best[np.argsort(-near[best])] + 1)

    def ask(query: int) -> Array:
        return index.neighbours("raw", vectors[query], K, LabelState.OPEN)[0]

    figures: dict[str, Any] = {"index_ms": timed(ask, queries), "numpy_ms": timed(scan, queries)}
    took: list[float] = []
    found = 0
    for query in queries.tolist():
        best = scan(query)
        started = time.perf_counter()
        ids = ask(query)
        took.append(time.perf_counter() - started)
        found += len(np.intersect1d(ids, best))
    return figures | {
        "index_in_turns_with_numpy_ms": percentiles(took),
        "recall": round(found / (K * len(queries)), 4),
    }


def timed(action: Callable[[int], object], items: Array) -> dict[str, float]:
    took = []
    for item in items.tolist():
        started = time.perf_counter()
        action(item)
        took.append(time.perf_counter() - started)
    return percentiles(took)


def during_build(
    index: EdgeIndex, tasks: Array, spaces: dict[str, Floats], states: Array
) -> dict[str, float]:
    """Search times while another thread builds the next index."""
    thread = threading.Thread(target=index.build, args=(tasks, spaces, states))
    took = []
    thread.start()
    while thread.is_alive():
        started = time.perf_counter()
        index.neighbours("raw", spaces["raw"][len(took) % len(tasks)], K, LabelState.OPEN)
        took.append(time.perf_counter() - started)
        time.sleep(0.01)  # as people do, not in a tight loop
    return percentiles(took)


def resident_mb() -> float:
    """Resident memory of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where to write the figures")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    arguments = parser.parse_args()
    figures = {}
    for count in arguments.sizes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            figures[str(count)] = pool.submit(measure, count).result()
    report("index", figures, arguments.out)


if __name__ == "__main__":
    main()
