"""What every check may look at: read from Label Studio once, when first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ml_backend.controls import Control, control_of
from ml_backend.domain.model import MODEL_VERSION, PredictionRow, ProjectRef, Task, TaskId
from ml_backend.ports import LabelStudio, State
from ml_backend.services.connecting import label_studio_setup
from ml_backend.settings import Settings
from ml_backend.wire import image_of

SAMPLE = 5
"""Tasks whose images are looked at."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something broken: what, the value that was found, and the exact thing to do.

    ``warning`` is for what works but is not as good as it should be.
    """

    problem: str
    value: str
    fix: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """What is worth saying where nothing is broken."""

    value: str


class CannotCheckError(Exception):
    """A check that can't run, and why."""


Check = Callable[["CheckContext"], Iterator[Fault | Note]]


@dataclass(frozen=True)
class CheckContext:
    """One project under examination.

    ``workers`` tells what is wrong with the background workers, nothing where all is well.
    ``ask`` allows to ask Label Studio for the next task (it is handed back).
    """

    ref: ProjectRef
    studio: LabelStudio
    state: State
    settings: Settings
    workers: Callable[[], str] | None = None
    ask: bool = True

    @property
    def connect(self) -> str:
        """The command that repairs what connect can repair."""
        return f"Run: rush connect --project {self.ref.id}"

    @cached_property
    def project(self) -> dict[str, Any]:
        """The project's JSON."""
        return self.studio.project(self.ref.id)

    @cached_property
    def control(self) -> Control:
        """What may be predicted."""
        return control_of(self.state.options(self.ref), self.project["label_config"])

    @cached_property
    def backends(self) -> list[dict[str, Any]]:
        """ML backend rows, their states just renewed."""
        return label_studio_setup.backends(self.studio, self.ref.id)

    @cached_property
    def backend(self) -> dict[str, Any]:
        """Our ML backend row, the one with our address first."""
        ours = [row for row in self.backends if row["title"] == MODEL_VERSION or self._is_ours(row)]
        if not ours:
            raise CannotCheckError("the project has no ML backend of Rush")
        return max(ours, key=self._is_ours)

    def _is_ours(self, row: dict[str, Any]) -> bool:
        return bool(row["url"].rstrip("/") == self.settings.backend_url)

    @cached_property
    def webhooks(self) -> list[dict[str, Any]]:
        """The project's webhooks."""
        return label_studio_setup.webhooks(self.studio, self.ref.id)

    @property
    def webhook(self) -> dict[str, Any] | None:
        """The webhook to our address."""
        url = label_studio_setup.webhook_url(self.settings.backend_url)
        return next((row for row in self.webhooks if row["url"].rstrip("/") == url), None)

    @cached_property
    def raw_predictions(self) -> list[dict[str, Any]]:
        """Every prediction row as Label Studio has it."""
        reply = self.studio.call("GET", "/api/predictions/", params={"project": self.ref.id}, timeout=600.0)
        return list(reply if isinstance(reply, list) else reply["results"])

    @cached_property
    def predictions(self) -> list[PredictionRow]:
        """Prediction rows of every version."""
        return self.studio.predictions(self.ref.id)

    @cached_property
    def waiting(self) -> list[PredictionRow]:
        """The queue as Label Studio has it: first row first."""
        return label_studio_setup.open_rows(self.state, self.ref, self.predictions)

    @cached_property
    def images(self) -> dict[TaskId, str]:
        """Image values of a few tasks, of the queue's first where there are any."""
        found: dict[TaskId, Any] = {}
        first = list(dict.fromkeys(row.task for row in self.waiting))[:SAMPLE]
        for task in first:
            found[task] = self.studio.call("GET", f"/api/tasks/{task}/")["data"]
        if not found:
            page = {"project": self.ref.id, "page_size": SAMPLE, "resolve_uri": "false", "fields": "all"}
            for row in (self.studio.call("GET", "/api/tasks/", params=page) or {}).get("tasks") or ():
                found[TaskId(row["id"])] = row["data"]
        return {task: image_of(Task(task, data or {}), self.control) for task, data in found.items()}
