"""What choosing 100 items costs: seconds and memory of every strategy at 10,000 to 1,000,000 items.

``python bench/selection.py [--sizes N …] [--strategies NAME …] [--out FILE]``; each in a process of its own.
The pool is random clusters in 64 dimensions, 10 classes, 1,000 labels, regions and all optional signals:
only number and shape count.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import strategies
from bench.common import report
from strategies import Pool

DIM, CLASSES, LABELS, REGIONS, K = 64, 10, 1000, 50, 100
REPEATS = 3


def pool(count: int, asks: str) -> Pool:
    """A pool of ``count`` items, a thousand of them labelled; probabilities agree with the clusters."""
    rng = np.random.default_rng(0)
    region = rng.integers(0, REGIONS, count).astype(np.int32)
    centres = rng.standard_normal((REGIONS, DIM)).astype(np.float32)
    vectors = centres[region] + rng.standard_normal((count, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labelled = np.zeros(count, bool)
    labelled[rng.choice(count, LABELS, replace=False)] = True
    logits = 2 * rng.standard_normal((count, CLASSES), dtype=np.float32)
    logits[np.arange(count), region % CLASSES] += 3
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return Pool(
        vectors=vectors,
        available=labelled if asks == "labelled" else ~labelled,
        labelled=labelled,
        answers=np.where(labelled, region % CLASSES, -1).astype(np.int64),
        probabilities=probabilities,
        clusters=region,
        density=rng.random(count, dtype=np.float32),
        head=vectors,
        agreed=np.where(labelled, rng.random(count) < 0.8, np.nan).astype(np.float32),
    )


def measure(name: str, count: int) -> dict[str, Any]:
    """Seconds of the first call (with imports) and the median of further ones; MB allocated at most."""
    items = pool(count, strategies.get(name).asks)
    took = []
    for seed in range(REPEATS + 1):
        began = time.perf_counter()
        rows = strategies.select(name, items, K, seed).rows
        took.append(time.perf_counter() - began)
    tracemalloc.start()
    strategies.select(name, items, K)
    peak = tracemalloc.get_traced_memory()[1]
    return {
        "first_s": round(took[0], 3),
        "s": round(float(np.median(took[1:])), 3),
        "peak_mb": round(peak / 1e6, 1),
        "rows": len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where to write the figures")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--strategies", nargs="+", default=strategies.names())
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for count in options.sizes:
        for name in options.strategies:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
                found = child.submit(measure, name, count).result()
            figures.setdefault(str(count), {})[name] = found
            print(f"{count:>9} {name:20} {found}", file=sys.stderr, flush=True)
    report("selection", figures, options.out)


if __name__ == "__main__":
    main()
