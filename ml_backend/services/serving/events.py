"""What each of Label Studio's webhooks means for a project; every door hands them in here."""

from __future__ import annotations

import logging
import time

from ml_backend.services.serving.project import Project
from ml_backend.wire import Event

log = logging.getLogger(__name__)


def handle(project: Project, event: Event) -> None:
    """Take one event in; the same one may come twice, late or never."""
    began = time.perf_counter()
    if event.annotations:
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
    elif event.tasks:
        project.created(event.tasks)
    if event.deleted_annotations:
        project.unannotated(event.deleted_annotations)
    if event.deleted_tasks:
        project.deleted(event.deleted_tasks)
    if event.action == "PROJECT_UPDATED":
        project.configured(event.label_config)
    if event.action == "START_TRAINING":
        project.backend.jobs.enqueue("train", project.ref, force=True)
