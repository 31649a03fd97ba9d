"""Label Studio's JSON ↔ our words, and the only place that turns a queue place into a prediction score."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ml_backend.controls import Control
from ml_backend.domain.errors import BadRequest
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
T = TypeVar("T")
_FAR = 2.0**40
_ABOUT_SOMETHING = {
    "ANNOTATION_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATIONS_DELETED",
    "TASKS_CREATED",
    "TASKS_DELETED",
    "PROJECT_UPDATED",
}
"""Actions that bring along what they are about; Label Studio is asked where one doesn't."""


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


def _id_of(value: Any) -> Any:
    """Label Studio sends related objects as an id or as an object that has one."""
    return value.get("id") if isinstance(value, Mapping) else value


def _row_of(value: Any) -> Any:
    """A related object; where only its id was sent, an object of just that."""
    return {"id": value} if isinstance(value, int | str) else value


def _rows(value: Any) -> Any:
    """Label Studio sends one object, or a list of them, under the same name."""
    return [] if value is None else value if isinstance(value, list) else [value]


def _number(value: Any) -> float | None:
    """A duration or a count, or nothing: an odd one must not cost the row that it came with."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0.0 <= number < math.inf else None


def _regions(value: Any) -> list[Any]:
    """The regions of a result; what is none costs nothing but itself."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


Id = Annotated[int, BeforeValidator(_id_of), Field(ge=0, lt=2**63)]
"""An id that fits Label Studio's database and our int64 arrays."""
Rows = Annotated[list[Any], BeforeValidator(_rows)]
"""Objects that are read one by one: a malformed one costs nothing but itself."""


class TaskJson(_Wire):
    """A task as Label Studio sends it."""

    id: Id
    data: dict[str, Any] = {}
    meta: dict[str, Any] | None = None
    total_annotations: Annotated[float | None, BeforeValidator(_number)] = None
    cancelled_annotations: Annotated[float | None, BeforeValidator(_number)] = None

    def to_domain(self) -> Task:
        """The task in our words."""
        return Task(TaskId(self.id), self.data, self.meta or {})


class AnnotationJson(_Wire):
    """An annotation as Label Studio sends it."""

    id: Id
    task: Id
    completed_by: Id | None = None
    result: Annotated[list[dict[str, Any]], BeforeValidator(_regions)] = []
    was_cancelled: bool = False
    lead_time: Annotated[float | None, BeforeValidator(_number)] = None
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
    project: Annotated[ProjectJson | None, BeforeValidator(_row_of)] = None
    annotation: Rows = []
    annotations: Rows = []
    task: Rows = []
    tasks: Rows = []

    @property
    def project_id(self) -> int | None:
        """None only where Label Studio sent no project, as a webhook without payload."""
        return self.project.id if self.project else None

    @property
    def label_config(self) -> str:
        """The project's label config, which every webhook brings along."""
        return self.project.label_config if self.project else ""

    def event(self, control: Control) -> StudioEvent:
        """The webhook in our words, its answers read by the project's control.

        BadRequest where none of what it is about can be read.
        """
        answers, tasks = self.annotation or self.annotations, self.tasks or self.task
        match self.action:
            case "ANNOTATION_CREATED" | "ANNOTATION_UPDATED" | "ANNOTATIONS_CREATED" if answers:
                saved, left_out = readable(answers, lambda row: annotation(row, control))
                return AnnotationsSaved(saved, self._tasks(), left_out)
            case "ANNOTATIONS_DELETED" if answers:
                return AnnotationsDeleted(*readable(answers, lambda row: AnnotationId(_id(row))))
            case "TASKS_CREATED" if tasks:
                rows, left_out = readable(tasks, lambda row: parse(TaskJson, row))
                answered = any(row.total_annotations or row.cancelled_annotations for row in rows)
                return TasksCreated(tuple(row.to_domain() for row in rows), left_out, answered)
            case "TASKS_DELETED" if tasks:
                return TasksDeleted(*readable(tasks, lambda row: TaskId(_id(row))))
            case "PROJECT_UPDATED" if self.label_config:
                return ProjectUpdated(self.label_config)
            case "PROJECT_DELETED":
                return ProjectDeleted()
            case "START_TRAINING":
                return TrainingAsked()
            case _:
                return (
                    Unspecified(self.action) if self.action in _ABOUT_SOMETHING else Irrelevant(self.action)
                )

    def _tasks(self) -> tuple[Task, ...]:
        """The tasks that an annotation's webhook brings along; malformed ones cost nothing else."""
        try:
            return readable(self.task, _task)[0]
        except BadRequest:
            return ()


def readable(rows: Sequence[Any], read: Callable[[Any], T]) -> tuple[tuple[T, ...], tuple[str, ...]]:
    """What can be read, and why each of the others can't; BadRequest where none can."""
    good: list[T] = []
    bad: dict[int, BadRequest] = {}
    for number, row in enumerate(rows):
        try:
            good.append(read(row))
        except BadRequest as error:
            bad[number] = error
    if bad and not good:
        raise next(iter(bad.values()))
    return tuple(good), tuple(f"row {number}: {error.message}" for number, error in bad.items())


def _task(row: Any) -> Task:
    return parse(TaskJson, row).to_domain()


def _id(row: Any) -> int:
    return parse(IdOnly, _row_of(row)).id


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
    """One annotation object in our words, its labels as the control reads them; None reads none."""
    row = parse(AnnotationJson, body)
    return Annotation(
        id=AnnotationId(row.id),
        task=TaskId(row.task),
        annotator=row.completed_by or 0,
        labels=() if row.was_cancelled or control is None else control.read(row.result),
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
