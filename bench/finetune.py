"""A fine-tuning run against a head alone: what it takes, and what it is worth.

python bench/finetune.py --cifar10 cifar10-test.tar [--labels 1000] [--images 10000] [--device auto]

The job of the product runs as it is, over a Redis of its own and images from the tar. Accuracy is that of the
chosen suggestions on every image without a label, purity the share of the 10 nearest among those images that
have the same class.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import report
from data import cifar10
from stack import label_config

from ml_backend import jobs
from ml_backend.adapters.processes.servers import LocalRedis
from ml_backend.bootstrap import Container
from ml_backend.domain.generation import Generation
from ml_backend.domain.model import Annotation, AnnotationId, Task, TaskId, TaskRecord
from ml_backend.settings import Settings


class Images:
    """A Label Studio that serves files from memory."""

    origin = "http://bench"

    def __init__(self, files: list[bytes]) -> None:
        self.files = {f"/{n}.jpg": data for n, data in enumerate(files, 1)}

    def records(self, project: int, control: object = None) -> Iterator[TaskRecord]:
        """Every image as a task."""
        for n, address in enumerate(self.files, 1):
            yield TaskRecord(Task(TaskId(n), {"image": address}))

    def download(self, url: str, project: int | None = None) -> bytes:
        """The file."""
        return self.files[url]


class Nothing:
    """Jobs that would follow."""

    def enqueue(self, job: str, project: Any, **arguments: Any) -> None:
        """Run nothing."""

    def waits(self, job: str, project: Any) -> bool:
        """Nothing does."""
        return False


def worth(container: Container, generation: Generation, truth: np.ndarray, labelled: int) -> dict[str, float]:
    """Accuracy and purity of a generation on the images without a label."""
    ref = container.ref(1)
    tasks = container.state.tasks(ref)
    features = container.features_of(ref, generation).get([tasks[TaskId(n + 1)] for n in range(len(truth))])
    assert generation.head is not None
    head = generation.head.encode(features)
    said = generation.head.probabilities(head, multiple=False).argmax(axis=1)
    classes = np.array([int(name) for name in generation.classes])
    rest = np.arange(labelled, len(truth))
    found = {"accuracy of the head": float((classes[said] == truth)[rest].mean())}
    for space, rows in (("raw", generation.pca.encode(features)), ("head", head)):
        near = rows[rest] @ rows[rest].T
        np.fill_diagonal(near, -np.inf)
        best = np.argpartition(-near, 10, axis=1)[:, :10]
        found[f"purity {space}"] = float((truth[rest][best] == truth[rest][:, None]).mean())
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    """One ordinary round and one fine-tuning run on the same labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    pairs = list(cifar10(options.cifar10))
    order = np.random.default_rng(0).permutation(len(pairs))[: options.images]
    names = sorted({pairs[n][0] for n in order})
    truth = np.array([names.index(pairs[n][0]) for n in order])
    with tempfile.TemporaryDirectory(prefix="rush-bench-") as folder:
        redis = LocalRedis(Path(folder) / "redis")
        redis.start()
        settings = Settings(data_dir=Path(folder) / "rush", redis_url=redis.url, device=options.device)
        container, studio = Container(settings), Images([pairs[n][1] for n in order])
        container.__dict__.update(studio=studio, jobs=Nothing(), origin=studio.origin)
        jobs.container = lambda: container  # type: ignore[assignment]
        ref, figures = container.ref(1), {"labels": options.labels, "images": len(order)}
        container.state.set_options(ref, label_config=label_config([str(n) for n in range(len(names))]))
        began = time.perf_counter()
        jobs.ingest(ref, {str(n): address for n, address in enumerate(studio.files, 1)})
        figures["embedding, images/s"] = round(len(order) / (time.perf_counter() - began), 1)
        container.state.set_annotations(
            ref,
            [
                Annotation(AnnotationId(n + 1), TaskId(n + 1), 1, (str(truth[n]),), created_at=f"{n:09}")
                for n in range(options.labels)
            ],
        )
        jobs.train(ref)
        plain = container.artifacts.generation(ref)
        began = time.perf_counter()
        jobs.finetune(ref)
        figures["full round, s"] = round(time.perf_counter() - began, 1)
        full = container.artifacts.generation(ref)
        assert plain is not None
        assert full is not None
        figures["head alone"] = worth(container, plain, truth, options.labels)
        figures["published"] = full.number > plain.number
        if figures["published"]:
            figures["full"] = worth(container, full, truth, options.labels)
            figures["verdict"] = full.manifest["full"]
        figures["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        redis.stop()
    report("finetune", figures, options.out)


if __name__ == "__main__":
    main()
