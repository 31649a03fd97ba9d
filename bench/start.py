"""How long the web process takes from its start until it answers, and the memory that it then has.

PYTHONPATH=. python bench/start.py [--images 10000] [--labels 500] [--classes 10] [--starts 5]

A project of random features, with labels and a trained head, in a real Redis and the embedded index. Label
Studio is not asked on the way to the first answer, so none is started.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from common import report
from stack import label_config, store_features

from ml_backend.adapters.processes.child import free_port
from ml_backend.adapters.processes.servers import LocalRedis
from ml_backend.bootstrap import Container
from ml_backend.domain.content_hash import content_key
from ml_backend.domain.model import Annotation, AnnotationId, TaskId
from ml_backend.settings import Settings

PROJECT = 1


def prepare(container: Container, images: int, labels: int, classes: int) -> None:
    """A project as a day of labelling leaves it: features, labels, a map and a generation with a head."""
    rng = np.random.default_rng(0)
    ref, names = container.ref(PROJECT), [f"class {n}" for n in range(classes)]
    keys = [content_key(str(n).encode()) for n in range(images)]
    truth = rng.integers(0, classes, images)
    middles = rng.standard_normal((classes, 1280)).astype(np.float32)
    for start in range(0, images, 1000):
        some = truth[start : start + 1000]
        rows = middles[some] + 2 * rng.standard_normal((len(some), 1280)).astype(np.float32)
        store_features(container, keys[start : start + 1000], rows)
    container.state.set_options(ref, label_config=label_config(names))
    container.state.set_tasks(ref, {TaskId(n + 1): key for n, key in enumerate(keys)})
    container.state.set_annotations(
        ref,
        [
            Annotation(AnnotationId(n + 1), TaskId(n + 1), 1, (names[truth[n]],), created_at=f"{n:09}")
            for n in range(labels)
        ],
    )
    learner = container.learner(ref)
    learner.map(ref)
    learner.learn(ref)


def get(url: str, body: Any = None) -> bool:
    """Whether the address answers with what a browser would call a success."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            answer = json.loads(reply.read())
            return "results" not in answer or bool(answer["results"][0]["result"])
    except (urllib.error.URLError, OSError):
        return False


def start(settings: Settings, images: int, *, workers: bool) -> dict[str, float]:
    """Seconds from the start of the process to /health and to a suggestion, and memory after it.

    With ``workers`` the two of ``rush start`` are started just before it.
    """
    environment = os.environ | settings.environment()
    alone = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    rush, found = [sys.executable, "-m", "ml_backend.cli"], dict[str, float]()
    began = time.perf_counter()
    beside = [
        subprocess.Popen([*rush, "worker", "--only", only], env=environment, stderr=subprocess.DEVNULL)
        for only in (("fast", "slow") if workers else ())
    ]
    process = subprocess.Popen([*rush, "serve"], env=environment | alone, stderr=subprocess.DEVNULL)
    try:
        ask = {"tasks": [{"id": images, "data": {"image": "/x.jpg"}}], "project": f"{PROJECT}.1"}
        for name, path, body in (("health", "/health", None), ("first_answer", "/predict", ask)):
            while not get(f"{settings.backend_url}{path}", body):
                assert process.poll() is None, "the backend has ended"
                time.sleep(0.02)
            found[name] = time.perf_counter() - began
        time.sleep(3)  # the first ranking
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        status = Path(f"/proc/{children[0] if children else process.pid}/status").read_text()
        found["resident_mb"] = next(int(x.split()[1]) / 1024 for x in status.splitlines() if "VmRSS" in x)
    finally:
        for each in (process, *beside):
            each.terminate()
        for each in (process, *beside):
            each.wait(30)
    return found


def main() -> None:
    """Prepare once, start several times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rush-bench-") as folder:
        redis = LocalRedis(Path(folder) / "redis")
        redis.start()
        try:
            settings = Settings(
                data_dir=Path(folder) / "rush",
                redis_url=redis.url,
                label_studio_url="http://127.0.0.1:9",
                label_studio_api_key="0" * 40,
                port=free_port(),
                sync_seconds=0,
                log_level="ERROR",
            )
            prepare(Container(settings), options.images, options.labels, options.classes)
            figures: dict[str, Any] = {"images": options.images, "labels": options.labels}
            for name, workers in (("backend alone", False), ("with two workers", True)):
                rows = [start(settings, options.images, workers=workers) for _ in range(options.starts)]
                middle = {key: round(float(np.median([row[key] for row in rows])), 2) for key in rows[0]}
                figures[name] = middle
        finally:
            redis.stop()
    report("start", figures, options.out)


if __name__ == "__main__":
    main()
