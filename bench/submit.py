"""Submit → next with Rush connected against the same Label Studio without a backend.

python bench/submit.py --cifar10 PATH --cache DIR [--annotations 200] [--label-studio .cache/label-studio]

Every round labels one image in the project without a backend and one in each project with Rush, so both
meet the same load. Before each submit the annotator looks at the image for ``--pause`` seconds, by default
0.6, the fastest that is published for a confirmed image. A hit is a next task that Rush decided on.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import percentiles, report
from data import cifar10_features
from stack import Stack, answer, label_config, stack, store_features

from ml_backend.domain.content_hash import content_key
from ml_backend.domain.events import StrategyChosen
from ml_backend.operations.projects import connect

STRATEGIES = ("rush", "cluster_chain", "random", "margin", "diversity")
"""The default, and one of each kind: a chain, a sample, a score, a batch."""
IMPORTED_AT_ONCE = 2000


def project_with(
    studio: Stack, title: str, labels: list[str], keys: list[str], rush: bool
) -> tuple[int, dict[int, str]]:
    """Create a project of these tasks; returns its id and the true label of each task."""
    config = label_config(sorted(set(labels)))
    number = studio.call("POST", "/api/projects", json={"title": title, "label_config": config})["id"]
    if rush:
        connect(studio.container, number)
    tasks: list[dict[str, Any]] = [
        {"data": {"image": f"/data/local-files/?d={key}.jpg"}, "meta": {"rush": {"key": key}}} for key in keys
    ]
    truth: dict[int, str] = {}
    for start in range(0, len(tasks), IMPORTED_AT_ONCE):
        body = tasks[start : start + IMPORTED_AT_ONCE]
        done = studio.call(
            "POST", f"/api/projects/{number}/import", params={"return_task_ids": "true"}, json=body
        )
        truth.update(zip(done["task_ids"], labels[start : start + len(body)], strict=True))
    return number, truth


def label_one(studio: Stack, project: int, truth: dict[int, str], task: int) -> tuple[float, int]:
    """Submit the true label of ``task``; returns seconds until the next task is there, and its id."""
    began = time.perf_counter()
    studio.call(
        "POST", f"/api/tasks/{task}/annotations", params={"project": project}, json=answer(truth[task])
    )
    following = studio.call("GET", f"/api/projects/{project}/next")
    return time.perf_counter() - began, int(following["id"])


def measure(
    studio: Stack, plain: tuple[int, dict[int, str]], mine: tuple[int, dict[int, str]], n: int, pause: float
) -> dict[str, Any]:
    """Label ``n`` images in both projects in turn."""
    current = {p: int(studio.call("GET", f"/api/projects/{p}/next")["id"]) for p, _ in (plain, mine)}
    seconds: dict[int, list[float]] = {plain[0]: [], mine[0]: []}
    hits = accepted = 0
    for _ in range(n):
        for project, truth in (plain, mine):
            task = current[project]
            if project == mine[0]:
                shown = studio.call("GET", f"/api/tasks/{task}")["predictions"]
                suggested = [r["result"][0]["value"]["choices"] for r in shown if r["result"]]
                accepted += [truth[task]] in suggested
            time.sleep(pause)
            took, following = label_one(studio, project, truth, task)
            seconds[project].append(took)
            current[project] = following
            if project == mine[0]:
                hits += following in studio.status(project)["next"].values()
    base, rush = percentiles(seconds[plain[0]]), percentiles(seconds[mine[0]])
    paired = np.array(seconds[mine[0]]) - np.array(seconds[plain[0]])
    return {
        "annotations": n,
        "pause_s": pause,
        "without_ms": base,
        "with_ms": rush,
        "added_p50_ms": round(rush["p50"] - base["p50"], 1),
        "added_median_of_pairs_ms": round(1000 * float(np.median(paired)), 1),
        "hit_rate": hits / n,
        "accepted": accepted / n,
    }


def main() -> None:
    """Measure every strategy at every size, and the first one also in special circumstances."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--annotations", type=int, default=200)
    parser.add_argument("--pause", type=float, default=0.6)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--label-studio", type=Path, default=Path(".cache/label-studio"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    features, labels = cifar10_features(options.cifar10, options.cache)
    order = np.random.default_rng(0).permutation(len(labels))
    features, labels = features[order], [labels[n] for n in order]
    keys = [content_key(str(n).encode()) for n in range(len(labels))]
    figures: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="rush-bench-") as folder,
        stack(Path(folder), options.label_studio, train_labels=50, coordinates="off") as studio,
    ):
        store_features(studio.container, keys, features)
        for size in options.sizes:
            plain = project_with(studio, f"plain {size}", labels[:size], keys[:size], rush=False)
            mine = project_with(studio, f"rush {size}", labels[:size], keys[:size], rush=True)
            studio.wait(mine[0], tasks=size)
            ref = studio.container.ref(mine[0])
            studio.container.learner(ref).map(ref)
            studio.wait(mine[0], embedded=size, window=150)
            for name in options.strategies:
                choose(studio, mine[0], name)
                count = min(options.annotations, size // (2 * len(options.strategies)))
                figures[f"{name} at {size}"] = measure(studio, plain, mine, count, options.pause)
                print(name, size, figures[f"{name} at {size}"], flush=True)
            if size == max(options.sizes):
                choose(studio, mine[0], options.strategies[0])
                half, title = options.annotations // 2, f"{options.strategies[0]} at {size}"
                figures[f"{title}, no pause"] = measure(studio, plain, mine, half, 0.0)
                studio.container.jobs.enqueue("write_back", ref)
                written = len(studio.container.state.written(ref))
                found = measure(studio, plain, mine, half, options.pause)
                found["coordinates_written"] = len(studio.container.state.written(ref)) - written
                figures[f"{title} while the map waits to be written back"] = found
                figures["web process"] = web_process(studio.rush.backend.pid)
    report("submit", figures, options.out)


def choose(studio: Stack, project: int, name: str) -> None:
    """Switch the strategy and wait until the order follows it."""
    ref = studio.container.ref(project)
    studio.container.state.set_options(ref, strategy=name)
    studio.container.state.publish(ref, StrategyChosen())
    studio.wait(project, strategy=name)
    time.sleep(2)


def web_process(master: int) -> dict[str, Any]:
    """Resident memory of the process that answers Label Studio, and whether torch is loaded in it."""
    workers = [
        int(path.name)
        for path in Path("/proc").glob("[0-9]*")
        if f"PPid:\t{master}\n" in (path / "status").read_text(errors="replace")
    ]
    (worker,) = workers
    status = Path(f"/proc/{worker}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    maps = Path(f"/proc/{worker}/maps").read_text()
    return {"resident_mb": round(resident / 1024), "torch": "libtorch" in maps}


if __name__ == "__main__":
    main()
