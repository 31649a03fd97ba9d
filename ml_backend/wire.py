"""Label Studio's JSON ↔ our words, and the only place that turns a queue place into a prediction score."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ml_backend.controls import Control, choices
from ml_backend.domain.errors import BadRequest
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
from ml_backend.domain.image_key import texts_of, value_at
from ml_backend.domain.model import (
    MODEL_VERSION,
    Annotation,
    AnnotationId,
    PredictionId,
    Suggestion,
    Task,
    TaskId,
    text_of,
)
from ml_backend.domain.provenance import is_marked

M = TypeVar("M", bound=BaseModel)
_FAR = 2.0**40


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


def _id_of(value: Any) -> Any:
    """Label Studio sends related objects as an id or as an object that has one."""
    return value.get("id") if isinstance(value, Mapping) else value


def _seconds(value: Any) -> float | None:
    """A duration, or nothing: an odd one must not cost the label that it came with."""
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0.0 <= seconds < math.inf else None


Id = Annotated[int, BeforeValidator(_id_of), Field(ge=0, lt=2**63)]
"""An id that fits Label Studio's database and our int64 arrays."""


class TaskJson(_Wire):
    """A task as Label Studio sends it."""

    id: Id
    data: dict[str, Any] = {}
    meta: dict[str, Any] | None = None

    def to_domain(self) -> Task:
        """The task in our words."""
        return Task(TaskId(self.id), self.data, self.meta or {})


class AnnotationJson(_Wire):
    """An annotation as Label Studio sends it."""

    id: Id
    task: Id
    completed_by: Id | None = None
    result: list[dict[str, Any]] | None = None
    was_cancelled: bool = False
    lead_time: Annotated[float | None, BeforeValidator(_seconds)] = None
    created_at: Annotated[str, BeforeValidator(text_of)] = ""
    parent_prediction: Id | None = None


class ProjectJson(_Wire):
    """A project as far as Rush reads it."""

    id: Id
    label_config: str = ""


class IdOnly(_Wire):
    """What is left of a deleted row."""

    id: Id


class WebhookJson(_Wire):
    """The envelope of every webhook."""

    action: str = Field(min_length=1, max_length=64)
    project: ProjectJson | None = None
    annotation: dict[str, Any] | None = None
    annotations: list[dict[str, Any]] = []
    task: dict[str, Any] | None = None
    tasks: list[dict[str, Any]] = []

    @property
    def project_id(self) -> int | None:
        """None only where Label Studio sent no project."""
        return self.project.id if self.project else None

    def event(self, control: Control) -> StudioEvent:
        """The webhook in our words, its answers read by the project's control."""
        match self.action:
            case "ANNOTATION_CREATED" | "ANNOTATION_UPDATED" | "ANNOTATIONS_CREATED":
                rows = [self.annotation] if self.annotation else self.annotations
                if not rows:
                    raise BadRequest(f"{self.action} carries no annotation.")
                return AnnotationsSaved(tuple(annotation(row, control) for row in rows), self._task())
            case "ANNOTATIONS_DELETED":
                return AnnotationsDeleted(
                    tuple(AnnotationId(parse(IdOnly, row).id) for row in self.annotations)
                )
            case "TASKS_CREATED":
                return TasksCreated(tuple(parse(TaskJson, row).to_domain() for row in self.tasks))
            case "TASKS_DELETED":
                return TasksDeleted(tuple(TaskId(parse(IdOnly, row).id) for row in self.tasks))
            case "PROJECT_UPDATED":
                return ProjectUpdated(self.project.label_config if self.project else "")
            case "START_TRAINING":
                return TrainingAsked()
            case _:
                return Irrelevant(self.action)

    def _task(self) -> tuple[Task, ...]:
        """The task that an annotation's webhook brings along; a malformed one costs nothing else."""
        try:
            return (parse(TaskJson, self.task).to_domain(),) if self.task else ()
        except BadRequest:
            return ()


class PredictJson(_Wire):
    """The body of /predict; ``project`` is "ID.TIMESTAMP"."""

    tasks: list[dict[str, Any]]
    project: str | int | None = None
    label_config: str | None = None
    params: dict[str, Any] | None = None


class SetupJson(_Wire):
    """The body of /setup."""

    project: str | int | None = None
    label_config: str = Field("", alias="schema")
    hostname: str | None = None
    access_token: str | None = None


def parse(model: type[M], body: Any) -> M:
    """Validate a JSON body; BadRequest names the first field that is wrong."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        value = first.get("input")
        # The repr of something deeply nested would end in a RecursionError.
        given = f"a {type(value).__name__}" if isinstance(value, (Mapping, list)) else repr(value)[:80]
        raise BadRequest(f"{where}: {first['msg']}, got {given}.", "See docs/protocol.md.") from None


def project_id(value: str | int | None) -> int | None:
    """The id in Label Studio's project field, which is an id or "ID.TIMESTAMP"."""
    text = str(value if value is not None else "").partition(".")[0]
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise BadRequest(f"project: not a project id: {str(value)[:80]!r}.")
    return int(text)


def annotation(body: Any, control: Control | None = None) -> Annotation:
    """One annotation object in our words; with the labels of every Choices where no control is given."""
    row = parse(AnnotationJson, body)
    read = choices.read if control is None else control.read
    return Annotation(
        id=AnnotationId(row.id),
        task=TaskId(row.task),
        annotator=row.completed_by or 0,
        labels=() if row.was_cancelled else read(row.result),
        skipped=row.was_cancelled,
        lead_time=row.lead_time,
        created_at=row.created_at,
        suggested=None if row.parent_prediction is None else PredictionId(row.parent_prediction),
        machine=not row.was_cancelled and is_marked(row.result),
    )


def webhook(body: Any) -> WebhookJson:
    """The envelope of a webhook: whose it is, before anything in it is read."""
    return parse(WebhookJson, body)


def score_of(place: float) -> float:
    """A place in the queue as a prediction score: same order, exact for whole places up to 2**40 either way.

    Scores stay in [0, 1] because Label Studio leaves others out of bulk imports without a word.
    """
    return 0.5 + max(-_FAR, min(_FAR, float(place))) / (2 * _FAR)


def place_of(score: float) -> float:
    """The place in the queue that a prediction score stands for; inverse of ``score_of``."""
    return (float(score) - 0.5) * (2 * _FAR)


def prediction(control: Control, suggestion: Suggestion, place: float) -> dict[str, Any]:
    """A prediction object as /predict and the import requests carry it; lower places are served first."""
    return {"model_version": MODEL_VERSION, "score": score_of(place), "result": control.write(suggestion)}


def coordinates(x: float, y: float, cluster: int, generation: int, key: str) -> dict[str, Any]:
    """The value of ``meta.rush``."""
    return {
        "x": round(float(x), 4),
        "y": round(float(y), 4),
        "cluster": int(cluster),
        "generation": int(generation),
        "key": key,
    }


def content_key_of(task: Task) -> str:
    """The content key that an earlier import left in the task's meta, or nothing."""
    rush = task.meta.get("rush") if isinstance(task.meta, Mapping) else None
    key = rush.get("key") if isinstance(rush, Mapping) else None
    return key if isinstance(key, str) and re.fullmatch("[0-9a-f]{32}", key) else ""


def images_of(task: Task, control: Control) -> list[str]:
    """The addresses of the task's images: none, one, or as many as its list has."""
    return [
        address for each in texts_of(value_at(task.data, control.image_key)) if (address := text_of(each))
    ]


def image_of(task: Task, control: Control) -> str:
    """The address of the task's image, of the first where there is a list of them; or nothing."""
    return next(iter(images_of(task, control)), "")
