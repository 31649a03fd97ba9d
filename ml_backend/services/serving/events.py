"""What each of Label Studio's webhooks means for a project; every door hands them in here."""

from __future__ import annotations

import logging
import time
from typing import assert_never

from ml_backend.domain.events import (
    AnnotationsDeleted,
    AnnotationsSaved,
    Irrelevant,
    ProjectDeleted,
    ProjectUpdated,
    StudioEvent,
    TasksCreated,
    TasksDeleted,
    TrainingAsked,
    Unspecified,
)
from ml_backend.services.serving.project import Project

log = logging.getLogger(__name__)


def handle(project: Project, event: StudioEvent) -> None:
    """Take one event in; the same one may come twice, late or never."""
    match event:
        case AnnotationsSaved():
            _saved(project, event)
        case AnnotationsDeleted(annotations):
            project.unannotated(annotations)
        case TasksCreated(tasks):
            project.created(tasks)
            if event.answered:
                _ask(project)
        case TasksDeleted(tasks):
            project.deleted(tasks)
        case ProjectUpdated(label_config):
            project.configured(label_config)
        case TrainingAsked():
            project.ports.jobs.enqueue("train", project.ref, force=True)
        case ProjectDeleted() | Unspecified():
            _ask(project)
        case Irrelevant():
            pass
        case _:
            assert_never(event)
    if left_out := getattr(event, "left_out", ()):
        log.warning(
            "project %s: %d rows of a webhook can't be read, the first is %s",
            project.ref.id,
            len(left_out),
            left_out[0],
        )
        _ask(project)


def _ask(project: Project) -> None:
    """Label Studio holds the truth: it is read anew."""
    project.ports.jobs.enqueue("sync", project.ref)


def _saved(project: Project, event: AnnotationsSaved) -> None:
    began = time.perf_counter()
    moves = project.all_annotated(event.annotations, event.tasks)
    several = len(event.annotations) > 1
    for annotation in event.annotations[:1]:
        move = moves.get(annotation.annotator)
        log.info(
            "project %s: %s %s by %s, next %s, %.0f ms",
            project.ref.id,
            f"{len(event.annotations)} tasks" if several else f"task {annotation.task}",
            "taken over" if annotation.machine else "skipped" if annotation.skipped else "labelled",
            annotation.annotator,
            move.task if move else "none",
            1000 * (time.perf_counter() - began),
        )
