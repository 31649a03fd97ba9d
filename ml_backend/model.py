"""The face that label-studio-ml's own hosts know; a thin door to the same services as ``app``.

Runs under ``label_studio_ml.api.init_app`` of 1.0.9 and of 2.x. Two limits of 1.0.9's host, which needs a
``model_dir``: it handles webhooks in a process of their own, so they are passed on through Redis after Label
Studio had its answer, and it names its own model version, so Label Studio orders nothing by our scores.
2.x's host drops the webhooks of tasks and of deletions: the next sync makes up for them. ``rush serve`` has
none of these.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from ml_backend.bootstrap import Container
from ml_backend.domain.errors import NotFound
from ml_backend.domain.events import WebhookPassedOn
from ml_backend.domain.model import MODEL_VERSION
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings
from ml_backend.wire import TaskJson, parse, project_id, webhook

_running: dict[int, Projects] = {}
"""The projects of this process, by process id: a fork must not use its parent's index and threads."""
_opening = threading.Lock()


def _projects() -> Projects:
    here = os.getpid()
    with _opening:
        if here not in _running:
            projects = Container(Settings.read()).open_projects()
            projects.start()
            _running[here] = projects
        return _running[here]


class RushModel(LabelStudioMLBase):
    """Suggests labels and keeps the queue in order."""

    TRAIN_EVENTS = (
        "ANNOTATION_CREATED",
        "ANNOTATIONS_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_DELETED",
        "TASKS_CREATED",
        "TASKS_DELETED",
        "PROJECT_UPDATED",
        "PROJECT_DELETED",
        "START_TRAINING",
    )

    def setup(self) -> None:
        """Name the model version and take the project in (2.x calls this from its constructor)."""
        self.set("model_version", MODEL_VERSION)
        number = project_id(self.project_id)
        if number is not None and self.label_config:
            _projects().connect(number, self.label_config)

    def predict(
        self, tasks: list[dict[str, Any]], context: Any = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """One prediction per task, in order; ``context`` (interactive labelling) changes nothing."""
        if not tasks:
            return []
        projects = _projects()
        number = project_id(getattr(self, "project_id", "") or tasks[0].get("project"))
        try:
            project = projects.get(number)
        except NotFound:  # 1.0.9 names no project at setup; its config may be another's, so only at first
            if number is None or not self.label_config:
                raise
            project = projects.connect(number, self.label_config)
        return project.predictions([parse(TaskJson, task).to_domain() for task in tasks])

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Take in a webhook: ``fit(event, data)`` of 2.x, ``fit((), event=…, data=…)`` of 1.0.9."""
        action = kwargs.get("event") or (args[0] if args else None)
        data = kwargs.get("data") or (args[1] if len(args) > 1 else None) or {}
        body = {"action": action, **data}
        hook = webhook(body)
        if "job_id" in kwargs and hook.project_id is not None:  # 1.0.9: we are a child of the host
            container = Container(Settings.read())
            container.state.publish(container.ref(hook.project_id), WebhookPassedOn(body))
        else:
            _projects().hear(hook)
        return {}
