"""What each of Label Studio's webhooks means for a project; every door hands them in here."""

from __future__ import annotations

import logging
import time
from typing import assert_never

from ml_backend.domain.events import (
    AnnotationsDeleted,
    AnnotationsSaved,
    Irrelevant,
    ProjectUpdated,
    StudioEvent,
    TasksCreated,
    TasksDeleted,
    TrainingAsked,
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
        case TasksDeleted(tasks):
            project.deleted(tasks)
        case ProjectUpdated(label_config):
            project.configured(label_config)
        case TrainingAsked():
            project.ports.jobs.enqueue("train", project.ref, force=True)
        case Irrelevant():
            pass
        case _:
            assert_never(event)


def _saved(project: Project, event: AnnotationsSaved) -> None:
    began = time.perf_counter()
    tasks = {task.id: task for task in event.tasks}
    for annotation in event.annotations:
        move = project.annotated(annotation, tasks.get(annotation.task))
        log.info(
            "project %s: task %s %s by %s, next %s, %.0f ms",
            project.ref.id,
            annotation.task,
            "taken over" if annotation.machine else "skipped" if annotation.skipped else "labelled",
            annotation.annotator,
            move.task if move else "none",
            1000 * (time.perf_counter() - began),
        )
