"""What happens: in Label Studio, as its webhooks tell; and in our processes, as they tell each other.

Every event is a hint. The same one may come twice, late or never.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_backend.domain.model import Annotation, AnnotationId, Task, TaskId

# ---- in Label Studio


@dataclass(frozen=True, slots=True)
class AnnotationsSaved:
    """Somebody submitted, changed or skipped; ``tasks`` are the annotations' own, where they came along."""

    annotations: tuple[Annotation, ...]
    tasks: tuple[Task, ...] = ()
    left_out: tuple[str, ...] = ()
    """Of each row that can't be read, here and below: why, in one line."""


@dataclass(frozen=True, slots=True)
class AnnotationsDeleted:
    """Annotations are gone."""

    annotations: tuple[AnnotationId, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TasksCreated:
    """Tasks came in; ``answered``: some with answers, which no event of their own tells."""

    tasks: tuple[Task, ...]
    left_out: tuple[str, ...] = ()
    answered: bool = False


@dataclass(frozen=True, slots=True)
class TasksDeleted:
    """Tasks are gone, with all that belonged to them."""

    tasks: tuple[TaskId, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProjectUpdated:
    """A setting of the project changed; the label config may be the one."""

    label_config: str


@dataclass(frozen=True, slots=True)
class TrainingAsked:
    """Somebody pressed Start Training."""


@dataclass(frozen=True, slots=True)
class ProjectDeleted:
    """The project is gone, with all that belonged to it."""


@dataclass(frozen=True, slots=True)
class Unspecified:
    """An action without what it was about, as a webhook without payload sends it: Label Studio knows."""

    action: str


@dataclass(frozen=True, slots=True)
class Irrelevant:
    """An action that means nothing to us."""

    action: str


StudioEvent = (
    AnnotationsSaved
    | AnnotationsDeleted
    | TasksCreated
    | TasksDeleted
    | ProjectUpdated
    | TrainingAsked
    | ProjectDeleted
    | Unspecified
    | Irrelevant
)

# ---- in our processes


@dataclass(frozen=True, slots=True)
class Ingested:
    """The images of these tasks have features now."""

    tasks: tuple[TaskId, ...]


@dataclass(frozen=True, slots=True)
class GenerationPublished:
    """A training round has ended in a new generation."""

    number: int


@dataclass(frozen=True, slots=True)
class MapPublished:
    """There is a new map."""


@dataclass(frozen=True, slots=True)
class Synced:
    """The shared state was made equal to Label Studio's."""


@dataclass(frozen=True, slots=True)
class StrategyChosen:
    """The project's strategy is another one."""


@dataclass(frozen=True, slots=True)
class ControlChosen:
    """Another control is to be predicted, or classes are called otherwise by now."""


@dataclass(frozen=True, slots=True)
class AuditSampleChanged:
    """An audit sample was drawn, or more of it is asked for."""


@dataclass(frozen=True, slots=True)
class Retired:
    """Label Studio has no such project any more, or it was forgotten."""


@dataclass(frozen=True, slots=True)
class WebhookPassedOn:
    """A host that handles webhooks in a process of their own passes one on, as it came."""

    body: Mapping[str, Any]


Event = (
    Ingested
    | GenerationPublished
    | MapPublished
    | Synced
    | StrategyChosen
    | ControlChosen
    | AuditSampleChanged
    | Retired
    | WebhookPassedOn
)


def to_text(event: Event) -> tuple[str, dict[str, Any]]:
    """The name and the fields, fit for JSON, under which processes of every version know the event."""
    match event:
        case Ingested(tasks):
            return "ingested", {"tasks": list(tasks)}
        case GenerationPublished(number):
            return "generation", {"number": number}
        case MapPublished():
            return "projection", {}
        case Synced():
            return "synced", {}
        case StrategyChosen():
            return "strategy", {}
        case ControlChosen():
            return "control", {}
        case AuditSampleChanged():
            return "audits", {}
        case Retired():
            return "retired", {}
        case WebhookPassedOn(body):
            return "webhook", {"body": dict(body)}


def from_text(name: str, fields: Mapping[str, Any]) -> Event | None:
    """The event of that name; None for one that this version does not know."""
    match name:
        case "ingested":
            return Ingested(tuple(TaskId(int(task)) for task in fields.get("tasks", ())))
        case "generation":
            return GenerationPublished(int(fields.get("number", 0)))
        case "projection":
            return MapPublished()
        case "synced":
            return Synced()
        case "strategy":
            return StrategyChosen()
        case "control":
            return ControlChosen()
        case "audits":
            return AuditSampleChanged()
        case "retired":
            return Retired()
        case "webhook":
            return WebhookPassedOn(fields.get("body") or {})
        case _:
            return None
