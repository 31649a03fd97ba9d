"""A project of a million tasks: what starting, labelling, ranking, training and mapping cost, and the memory.

python bench/million.py [--tasks 1000000] [--out FILE]

Real are Redis, the feature files, the embedded index, UMAP, the heads and the project of the web
process; Label Studio is a dictionary, so the times are our own compute alone. The embeddings are random
clusters of 64 dimensions: only number and shape count. Each process's memory is measured by itself.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
from common import percentiles, report

from ml_backend.adapters.files.artifacts import FileArtifacts
from ml_backend.adapters.files.features import FileFeatures
from ml_backend.adapters.index.embedded import EmbeddedIndex
from ml_backend.adapters.memory import MemoryJobs, MemoryStudio
from ml_backend.adapters.processes.servers import LocalRedis
from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.generation import Array
from ml_backend.domain.label_config import choices_config
from ml_backend.domain.model import (
    SPACE_DIM,
    Annotation,
    AnnotationId,
    ContentKey,
    LabelState,
    ProjectRef,
    TaskId,
)
from ml_backend.ports import Jobs, LabelStudio
from ml_backend.services.learning.rounds import Learner
from ml_backend.services.queue.pool import ProjectPool
from ml_backend.services.serving.loading import ProjectPorts
from ml_backend.services.serving.project import Project
from ml_backend.settings import Settings

REF = ProjectRef("http://bench", 1)
CLASSES, BLOCK, LABELS, ANSWERS, K, QUERIES = 10, 100_000, 1000, 300, 50, 50
BACKBONE = "bench-64"


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return round(time.perf_counter() - began, 2)


def peak_mb() -> int:
    """The most memory that this process has held."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def keys(count: int) -> list[ContentKey]:
    """The content keys of all images."""
    return [ContentKey(f"{number:032x}") for number in range(1, count + 1)]


def truth(count: int) -> Array:
    """The class of each image."""
    return np.random.default_rng(0).integers(0, CLASSES, count)


def store(folder: Path) -> FileFeatures:
    """The feature files."""
    return FileFeatures(folder / "features", BACKBONE, SPACE_DIM)


def fill(folder: Path, url: str, count: int) -> dict[str, Any]:
    """Features, and the tasks in Redis, as an import leaves them."""
    rng, names, classes = np.random.default_rng(1), keys(count), truth(count)
    centres = rng.standard_normal((CLASSES, 20, SPACE_DIM))
    features, state = store(folder), RedisState(url)

    def write() -> None:
        for start in range(0, count, BLOCK):
            rows = classes[start : start + BLOCK]
            blobs = centres[rows, rng.integers(0, 20, len(rows))]
            features.append(names[start : start + BLOCK], blobs + rng.standard_normal(blobs.shape))

    def tell() -> None:
        config = choices_config([str(number) for number in range(CLASSES)])
        state.set_options(REF, label_config=config, strategy="rush")
        for start in range(0, count, BLOCK):
            block = range(start, min(start + BLOCK, count))
            state.set_tasks(REF, {TaskId(row + 1): names[row] for row in block})

    return {"features_s": timed(write), "tasks_s": timed(tell), "peak_mb": peak_mb()}


def worker(folder: Path, url: str, count: int) -> dict[str, Any]:
    """A worker's rounds: the map while there is no label, then a head of 1,000, then the map again."""
    from ml_backend.adapters.models.projector_umap import UmapProjector
    from ml_backend.adapters.models.trainer_torch import TorchTrainer

    state, projector, trainer = RedisState(url), UmapProjector(), TorchTrainer("cpu")
    learner = Learner(
        state, FileArtifacts(folder), store(folder), BACKBONE, lambda: trainer, lambda: projector
    )
    projector.warm()
    found: dict[str, Any] = {"map_s": timed(lambda: learner.map(REF))}
    classes, rows = truth(count), np.random.default_rng(2).permutation(count)[:LABELS]
    state.set_annotations(REF, [answer(int(row), str(classes[row])) for row in rows])
    found["train_s"] = timed(lambda: learner.learn(REF))
    found["map_again_s"] = timed(lambda: learner.map(REF))
    return found | {"peak_mb": peak_mb()}


def answer(row: int, label: str) -> Annotation:
    """A person's answer to the task of a row."""
    number = row + 1
    return Annotation(AnnotationId(number), TaskId(number), 1, (label,), created_at=f"{time.time():.6f}")


def web(folder: Path, url: str, count: int) -> dict[str, Any]:
    """The web process: start with its index, then ranking, people labelling and neighbours, by strategy."""
    state, studio = RedisState(url), MemoryStudio()
    index = EmbeddedIndex(folder / "index")
    backend = ProjectPorts(
        Settings(_env_file=None, sync_seconds=0),
        state,
        FileArtifacts(folder),
        lambda ref, generation: store(folder),
        cast(Jobs, MemoryJobs()),
        cast(LabelStudio, studio),
        lambda ref: index,
    )
    began = time.perf_counter()
    project = Project(REF, backend)
    pool, queue, classes = project.pool, project.queue, truth(count)
    found: dict[str, Any] = {
        "start_s": round(time.perf_counter() - began, 1),
        "searched": sorted(pool.searched),
        "neighbours_ms": percentiles(list(searches(index, pool.space, pool.vectors(pool.space)))),
        "recall": recall(index, pool),
    }
    for strategy in ("rush", "cluster_chain"):
        queue.strategy = strategy
        mine: dict[str, Any] = {"rank_s": timed(lambda: queue.rank(pool))}
        mine["fill_window_s"] = timed(lambda: queue.refill(pool, cast(LabelStudio, studio)))
        mine["submit_ms"] = percentiles(list(submits(project, studio, classes)))
        found[strategy] = mine
    found |= {"steady_mb": resident_mb(), "peak_mb": peak_mb()}
    index.close()
    return found


def submits(project: Project, studio: MemoryStudio, classes: Array) -> Iterator[float]:
    """Seconds that the web process computes per answer."""
    for number in range(ANSWERS):
        task = studio.serve(1)
        assert task is not None
        studio.close_task(task)
        made = answer(int(task) - 1, str(classes[int(task) - 1]))
        began = time.perf_counter()
        project.annotated(made)
        yield time.perf_counter() - began
        if number % 10 == 9:
            project.queue.refill(project.pool, cast(LabelStudio, studio))


def searches(index: EmbeddedIndex, space: str, vectors: Array) -> Iterator[float]:
    """Seconds of one filtered search."""
    for row in np.random.default_rng(3).permutation(len(vectors))[:500]:
        began = time.perf_counter()
        index.neighbours(space, vectors[row], K, LabelState.OPEN)
        yield time.perf_counter() - began


def recall(index: EmbeddedIndex, pool: ProjectPool) -> float:
    """Share of the true 50 nearest open ones that are found."""
    vectors, hits = pool.vectors(pool.space), 0
    for row in np.random.default_rng(4).permutation(len(vectors))[:QUERIES]:
        near = np.where(pool.open(), vectors @ vectors[row], -2)
        best = pool.ids[np.argpartition(-near, K - 1)[:K]]
        hits += len(np.intersect1d(best, index.neighbours(pool.space, vectors[row], K, LabelState.OPEN)[0]))
    return hits / (K * QUERIES)


def resident_mb() -> int:
    """What this process holds now."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) // 1024


def alone(work: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """``work`` in a process of its own; says what it found."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(work, *given).result()
    print(work.__name__, found, flush=True)
    return found


def main() -> None:
    """Run all and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        redis = LocalRedis(folder / "redis")
        redis.start()
        try:
            given = folder, redis.url, options.tasks
            figures: dict[str, Any] = {"tasks": options.tasks, "fill": alone(fill, *given)}
            figures["worker"] = alone(worker, *given)
            figures["web"] = alone(web, *given)
            state = RedisState(redis.url)
            figures["redis_mb"] = round(state._client.info("memory")["used_memory"] / 1e6)  # type: ignore[index]
        finally:
            redis.stop()
    report("million", figures, options.out)


if __name__ == "__main__":
    main()
