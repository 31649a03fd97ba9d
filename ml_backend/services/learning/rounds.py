"""A worker's rounds: the raw space and the map of new images, a head from new labels, both published."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ml_backend.controls import Control, control_of
from ml_backend.domain.errors import NotReady
from ml_backend.domain.events import GenerationPublished, MapPublished
from ml_backend.domain.generation import Array, Floats, Generation, Head, Pca, Projection
from ml_backend.domain.labels import resolve_labels
from ml_backend.domain.model import ContentKey, LabelState, ProjectRef, TaskId
from ml_backend.ports import Artifacts, Features, Projector, State, Trainer
from ml_backend.services.learning.maps import fit_pca, lay_out
from ml_backend.services.learning.train import TrainOutcome, train

log = logging.getLogger(__name__)

GROWTH = 2.0
"""The raw space is fitted anew once there are this many times the images it was fitted on."""
BLOCK = 4096


class PrincipalProjector:
    """``ports.Projector`` at once: the first two dimensions of a PCA space, until a better map is there."""

    def warm(self) -> None:
        """Nothing to compile."""

    def project(self, embeddings: Floats, initial: Array | None = None) -> Floats:
        """(n, d) → (n, 2) scaled to [0, 1]; an old map is not looked at."""
        xy = embeddings[:, :2]
        low, high = (xy.min(axis=0), xy.max(axis=0)) if len(xy) else (np.zeros(2), np.ones(2))
        return np.asarray((xy - low) / np.maximum(high - low, 1e-9), np.float32)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled tasks with their images: targets are classes (n,), or 0/1 (n, C) for multiple choice."""

    control: Control
    tasks: list[TaskId]
    keys: list[ContentKey]
    targets: Array

    def within(self, features: Features) -> Labelled:
        """Those whose images have these features."""
        lacking = set(features.missing(self.keys))
        rows = [row for row, key in enumerate(self.keys) if key not in lacking]
        return Labelled(
            self.control, [self.tasks[n] for n in rows], [self.keys[n] for n in rows], self.targets[rows]
        )


@dataclass(frozen=True, slots=True)
class Learner:
    """Runs rounds for any project; ``trainer`` and ``projector`` are made when they are first needed."""

    state: State
    artifacts: Artifacts
    features: Features
    backbone: str
    trainer: Callable[[], Trainer]
    projector: Callable[[], Projector]

    def raw_space(self, ref: ProjectRef, coming: Sequence[ContentKey] = ()) -> Generation:
        """The current generation, or a new one where none fits the images; NotReady without images."""
        generation = self.artifacts.generation(ref)
        keys = self.embedded(ref, coming)
        if not keys:
            raise NotReady(f"Project {ref.id} has no embedded image yet.", "Import images or run rush sync.")
        fitted_on = int(generation.manifest.get("images", 0)) if generation is not None else 0
        fits = generation is not None and generation.backbone == self.backbone
        if generation is not None and fits and len(keys) < GROWTH * fitted_on:
            return generation
        pca = fit_pca(self.features.get(keys))
        if generation is not None and fits:  # the head reads features, not the raw space: it stays
            manifest = {**generation.manifest, "images": len(keys)}
            fresh = replace(generation, number=generation.number + 1, pca=pca, manifest=manifest)
        else:
            number = 0 if generation is None else generation.number + 1
            fresh = Generation(number, self.backbone, pca, manifest={"images": len(keys), "labels": 0})
        self.publish(ref, fresh)
        return fresh

    def map(self, ref: ProjectRef, coming: Sequence[ContentKey] = ()) -> Projection:
        """Lay out all embedded images and publish; the first time a PCA map is there within a second.

        ``coming``: embedded images whose tasks are about to be imported.
        """
        generation = self.raw_space(ref, coming)
        keys = sorted(self.embedded(ref, coming))
        raw = self._encode(generation.pca, keys)
        head = generation.head if generation.space == "head" else None
        shown = raw if head is None else self._encode(head, keys)
        previous = self.artifacts.projection(ref)
        if previous is None:
            self._publish(ref, lay_out(keys, raw, PrincipalProjector(), None, generation.number, shown))
        return self._publish(ref, lay_out(keys, raw, self.projector(), previous, generation.number, shown))

    def learn(self, ref: ProjectRef) -> TrainOutcome:
        """Fit a head on all labels, publish it if it is no worse than the last; NotReady without images."""
        began = time.perf_counter()
        generation = self.raw_space(ref)
        outcome = self.fit(ref, self.labelled(ref), generation, generation.manifest.get("tuned_on", ()))
        fresh = outcome.generation
        if fresh is not None and fresh.head is None and generation.head is None:
            return TrainOutcome(None, outcome.manifest)  # nothing was learnt and nothing has changed
        if fresh is not None:
            self.publish(ref, fresh)
        log.info(
            "project %s: %d labels, %s in %.1f s: %s",
            ref.id,
            outcome.manifest["labels"],
            f"generation {generation.number + 1}" if fresh else "nothing published",
            time.perf_counter() - began,
            outcome.manifest.get("why") or outcome.manifest["held_out"],
        )
        return outcome

    def labelled(self, ref: ProjectRef) -> Labelled:
        """All labelled tasks whose images have features and whose answers teach something.

        An answer with a name that the label config no longer has teaches nothing.
        """
        tasks, control = self.state.tasks(ref), self._control_of(ref)
        labelled: list[tuple[TaskId, ContentKey, Array]] = []
        for task, (state, labels) in sorted(resolve_labels(self.state.annotations(ref)).items()):
            key = tasks.get(task)
            if state is LabelState.LABELLED and key and control.teaches(labels):
                labelled.append((task, key, control.target(labels)))
        return Labelled(
            control,
            [task for task, _, _ in labelled],
            [key for _, key, _ in labelled],
            np.array([target for _, _, target in labelled], np.int64).reshape(-1, *control.shape),
        ).within(self.features)

    def fit(
        self, ref: ProjectRef, labelled: Labelled, generation: Generation, seen: Collection[int] = ()
    ) -> TrainOutcome:
        """Fit and judge a head in the raw space of ``generation``, without publishing it; see ``train``."""
        control = labelled.control
        outcome = train(
            self.features.get(labelled.keys),
            labelled.targets,
            [int(task) for task in labelled.tasks],
            classes=control.classes,
            multiple=control.multiple,
            pca=generation.pca,
            trainer=self.trainer(),
            previous=generation.answering(control.from_name, multiple=control.multiple),
            number=generation.number + 1,
            tuned_on=frozenset(seen),
        )
        fresh = outcome.generation
        if fresh is not None:
            fresh = replace(fresh, control=control.from_name, question=control.question)
        return TrainOutcome(fresh, outcome.manifest)

    def publish(self, ref: ProjectRef, generation: Generation) -> None:
        """Make this the project's generation and tell everybody."""
        self.artifacts.publish_generation(ref, generation)
        self.state.publish(ref, GenerationPublished(generation.number))

    def _control_of(self, ref: ProjectRef) -> Control:
        return control_of(self.state.options(ref))

    def embedded(self, ref: ProjectRef, coming: Sequence[ContentKey] = ()) -> list[ContentKey]:
        """Images of the project, and those about to come, that have features."""
        keys = dict.fromkeys(key for key in (*self.state.tasks(ref).values(), *coming) if key)
        lacking = set(self.features.missing(keys))
        return [key for key in keys if key not in lacking]

    def _encode(self, encoder: Pca | Head, keys: list[ContentKey]) -> Floats:
        parts = [
            encoder.encode(self.features.get(keys[start : start + BLOCK]))
            for start in range(0, len(keys), BLOCK)
        ]
        return np.concatenate(parts)

    def _publish(self, ref: ProjectRef, projection: Projection) -> Projection:
        self.artifacts.publish_projection(ref, projection)
        self.state.publish(ref, MapPublished())
        return projection
