"""Hand-written stand-ins for what can't be real in a unit test: Label Studio and the job queue."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend.adapters.files.artifacts import FileArtifacts
from ml_backend.adapters.files.features import FileFeatures
from ml_backend.adapters.index.exact import ExactIndex
from ml_backend.adapters.memory import MemoryStudio
from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.errors import LabelStudioError
from ml_backend.domain.generation import Array, Floats, Generation, Pca, Projection, normalise
from ml_backend.domain.model import (
    SPACE_DIM,
    Annotation,
    AnnotationId,
    ContentKey,
    LabelState,
    PredictionId,
    PredictionRow,
    ProjectRef,
    TaskId,
)
from ml_backend.ports import Index
from ml_backend.services.serving.loading import ProjectPorts
from ml_backend.services.serving.project import Project
from ml_backend.settings import Settings

CONFIG = """<View><Image name="image" value="$image"/><Choices name="label" toName="image" choice="single">
<Choice value="a"/><Choice value="b"/><Choice value="c"/></Choices></View>"""
MULTIPLE = CONFIG.replace('"single"', '"multiple"')


class FakeLabelStudio(MemoryStudio):
    """A Label Studio that counts writes and can be down."""

    origin = "http://studio"

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.down = False

    def _write(self) -> None:
        self._answer()
        self.writes += 1

    def _answer(self) -> None:
        if self.down:
            raise LabelStudioError("Label Studio is down.")

    def create_prediction(
        self, project: int, task: TaskId, score: float, result: list[dict[str, Any]]
    ) -> PredictionId:
        self._write()
        return super().create_prediction(project, task, score, result)

    def update_prediction(self, prediction: PredictionId, score: float, result: list[dict[str, Any]]) -> None:
        self._write()
        super().update_prediction(prediction, score, result)

    def predictions(self, project: int, tasks: Sequence[TaskId] | None = None) -> list[PredictionRow]:
        self._answer()
        return super().predictions(project, tasks)


class FakeJobs:
    """Remembers what was to be done."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def enqueue(self, job: str, project: ProjectRef, **arguments: Any) -> None:
        self.asked.append((job, arguments))

    def waits(self, job: str, project: ProjectRef) -> bool:
        return any(asked == job for asked, _ in self.asked)


def states_in(index: Index) -> dict[int, LabelState]:
    """The label state of every task that has a vector."""
    query = np.zeros(SPACE_DIM, np.float32)
    return {
        int(task): state
        for space in ("raw", "head")
        for state in LabelState
        for task in index.neighbours(space, query, len(index), state)[0]
    }


def key_of(task: int) -> ContentKey:
    return ContentKey(f"{task:032x}")


def points(count: int, seed: int = 0, regions: int = 3) -> tuple[Floats, Array]:
    """(count, SPACE_DIM) unit vectors in well separated regions, and the region of each."""
    rng = np.random.default_rng(seed)
    region = np.arange(count) % regions
    rows = np.eye(SPACE_DIM)[region] + 0.05 * rng.standard_normal((count, SPACE_DIM))
    return normalise(rows), region


@dataclass
class World:
    """A project of ``count`` embedded tasks numbered from 1 over real state, features and artifacts."""

    state: RedisState
    count: int = 30
    config: str = CONFIG
    window: int = 10
    strategy: str = "cluster_chain"
    embedded: bool = True
    studio: FakeLabelStudio = field(default_factory=FakeLabelStudio)
    jobs: FakeJobs = field(default_factory=FakeJobs)
    index: ExactIndex = field(default_factory=ExactIndex)
    last: int = 0

    def __post_init__(self) -> None:
        self.ref = ProjectRef("http://studio", 1)
        folder = Path(tempfile.mkdtemp(prefix="rush-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        artifacts, features = FileArtifacts(folder), FileFeatures(folder / "features", "plain", SPACE_DIM)
        self.tasks = [TaskId(n + 1) for n in range(self.count)]
        rows, self.region = points(max(self.count, 3))
        rows, self.region = rows[: self.count], self.region[: self.count]
        if self.embedded and self.count:
            keys = [key_of(task) for task in self.tasks]
            features.append(keys, rows)
            identity = Pca(np.zeros(SPACE_DIM, np.float32), np.eye(SPACE_DIM, dtype=np.float32))
            artifacts.publish_generation(self.ref, Generation(0, "plain", identity))
            artifacts.publish_projection(
                self.ref,
                Projection(
                    0,
                    np.array(keys),
                    rows[:, :2],
                    self.region.astype(np.int32),
                    np.linspace(0.5, 0.9, self.count, dtype=np.float32),
                    np.eye(SPACE_DIM, dtype=np.float32)[:3],
                ),
            )
        self.state.set_options(self.ref, label_config=self.config, strategy=self.strategy)
        known = {task: key_of(task) if self.embedded else ContentKey("") for task in self.tasks}
        self.state.set_tasks(self.ref, known)
        settings = Settings(_env_file=None, window=self.window, sync_seconds=0)
        self.features = features
        self.ports = ProjectPorts(
            settings,
            self.state,
            artifacts,
            lambda ref, generation: features,
            self.jobs,
            self.studio,
            lambda ref: self.index,
        )
        self.project = Project(self.ref, self.ports)

    @property
    def queue(self) -> Any:
        return self.project.queue

    def label_of(self, task: TaskId) -> str:
        return "abc"[int(self.region[task - 1])]

    def answer(
        self,
        task: TaskId,
        label: str | None = None,
        who: int = 1,
        number: int | None = None,
        skipped: bool = False,
    ) -> Any:
        """Someone submits; Label Studio has closed the task by the time of the webhook's answer."""
        if number is None:
            self.last = number = self.last + 1
        self.studio.close_task(task)
        labels: Iterable[str] = () if skipped else (label or self.label_of(task),)
        return self.project.annotated(
            Annotation(
                AnnotationId(number), task, who, tuple(labels), skipped, 1.0, f"2026-01-01T{number:06d}"
            )
        )

    def settle(self, turns: int = 3) -> None:
        """Do what the keeper does between requests."""
        for _ in range(turns):
            self.project.queue.rank(self.project.pool)
            self.project.queue.refill(self.project.pool, self.studio)
