"""A project in memory: the product's own queue, suggestions and training, for people made of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from ml_backend.bootstrap import memory_ports
from ml_backend.domain.content_hash import content_key
from ml_backend.domain.events import GenerationPublished
from ml_backend.domain.generation import Array
from ml_backend.domain.label_config import choices_config
from ml_backend.domain.model import Annotation, AnnotationId, ProjectRef, TaskId
from ml_backend.domain.simulated_run import Options
from ml_backend.ports import LabelStudio
from ml_backend.services.learning.rounds import Learner, PrincipalProjector
from ml_backend.services.queue.suggest import suggest
from ml_backend.services.serving.loading import ProjectPorts
from ml_backend.services.serving.maintenance import LOW
from ml_backend.services.serving.project import Project
from ml_backend.settings import Settings
from strategies.simulate.replay import Labels

REF = ProjectRef("memory", 1)
BACKBONE = "memory"
"""The name of the features that a project starts with."""
NOBODY = -1
"""Who skips held-out images, so that nobody sees them and nothing is learnt from them."""


class MemoryProject:
    """``strategies.simulate.System``: the real project, queue and learner over ports in memory.

    Row n of the ``features`` (n, F) given is task n + 1.
    """

    def __init__(
        self,
        features: Array,
        classes: Sequence[str],
        held_out: Labels,
        strategy: str,
        options: Options,
    ) -> None:
        self.options, self._labels, self._turns = options, 0, 0
        self._ids = iter(range(1, 10**9))
        keys = [content_key(str(row).encode()) for row in range(len(features))]
        memory = memory_ports(choices_config(classes), strategy)
        self.state, self.artifacts, self.studio = memory.state, memory.artifacts, memory.studio
        self.state.set_tasks(REF, {TaskId(row + 1): key for row, key in enumerate(keys)})
        self.state.set_annotations(REF, [self._skip(int(row), NOBODY) for row in held_out])
        self.features = {BACKBONE: memory.features(keys, features)}
        self._trainer = memory.trainer
        self.learner = self.learner_on(BACKBONE)
        self.learner.map(REF)
        for row in held_out:
            self.studio.close_task(TaskId(int(row) + 1))
        ports = ProjectPorts(
            Settings(_env_file=None, sync_seconds=0),
            self.state,
            self.artifacts,
            lambda ref, generation: self.features[BACKBONE if generation is None else generation.backbone],
            memory.jobs,
            cast(LabelStudio, self.studio),
            memory.index,
        )
        self.project = Project(REF, ports)
        self._names = list(classes)
        self._number = {name: n for n, name in enumerate(classes)}
        self._keep()

    def learner_on(self, backbone: str) -> Learner:
        """Rounds on the features of a backbone, which ``features`` holds by its name."""
        features = self.features[backbone]
        return Learner(
            self.state, self.artifacts, features, backbone, lambda: self._trainer, PrincipalProjector
        )

    def serve(self, annotator: int) -> int | None:
        """The row that Label Studio would serve this annotator."""
        task = self.studio.serve(annotator)
        return None if task is None else int(task) - 1

    def suggestion(self, row: int) -> tuple[int, float]:
        """What the prediction in Label Studio shows, which may be older than what is known now."""
        place = self.project.queue.window.places.get(TaskId(row + 1))
        now = suggest(self.project.pool, [self.project.pool.row_of[TaskId(row + 1)]])[0]
        shown = now.labels if place is None or place.labels is None else place.labels
        chance = dict(now.ranked).get(shown[0], 0.0) if shown else 0.0
        return (self._number[shown[0]] if shown else -1), chance

    def answer(self, row: int, label: int | None, annotator: int) -> None:
        """Submit, then what the maintenance loop and the worker do between submits."""
        self.studio.close_task(TaskId(row + 1))
        if label is None:
            self.project.annotated(self._skip(row, annotator))
        else:
            number = AnnotationId(next(self._ids))
            names = (self._names[label],)
            self.project.annotated(
                Annotation(number, TaskId(row + 1), annotator, names, created_at=_time(number))
            )
            self._labels += 1
        self._turns += 1
        due = label is not None and self._labels % self.options.train_labels == 0
        if due and self.learner.learn(REF).generation is not None:
            self.project.on_event(GenerationPublished(self.learner.artifacts.generation_number(REF) or 0))
        self._keep()

    def _keep(self) -> None:
        queue, pool, studio = self.project.queue, self.project.pool, cast(LabelStudio, self.studio)
        if queue.stale(pool) and self._turns % self.options.rank_every == 0:
            queue.rank(pool)
        while len(queue.window.open(pool)) < LOW * queue.size and queue.refill(pool, studio):
            pass

    def predict(self, rows: Labels) -> Labels:
        """The classes that would be suggested now."""
        pool = self.project.pool
        found = suggest(pool, [pool.row_of[TaskId(int(row) + 1)] for row in rows])
        return np.array([self._number[it.labels[0]] if it.labels else -1 for it in found])

    def distance(self, row: int, other: int) -> float:
        """1 − cosine in the space that serves chains."""
        pool = self.project.pool
        vectors = pool.vectors(pool.space)
        a, b = (pool.row_of[TaskId(n + 1)] for n in (row, other))
        return float(1 - vectors[a] @ vectors[b])

    def _skip(self, row: int, annotator: int) -> Annotation:
        number = AnnotationId(next(self._ids))
        return Annotation(number, TaskId(row + 1), annotator, (), True, created_at=_time(number))


def _time(number: int) -> str:
    return f"{number:012}"
