"""The words of the project: tasks, annotations, suggestions, the queue window."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NewType
from urllib.parse import urlsplit, urlunsplit

TaskId = NewType("TaskId", int)
AnnotationId = NewType("AnnotationId", int)
PredictionId = NewType("PredictionId", int)
ContentKey = NewType("ContentKey", str)
"""Hex BLAKE2b-128 of an image file's bytes: the identity under which features are cached (32 characters)."""

MODEL_VERSION = "rush"
"""Backend title, prediction ``model_version`` and ``/setup`` answer: all three must be equal, for ever."""

CERTIFIED_VERSION = "rush-certified"
"""``model_version`` of suggestions that were taken over; ``-`` and the certificate's name follow."""

RECOUNT_FLAG = "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short"
"""In Label Studio's environment, ``true``: else a bulk request for predictions recounts the whole project."""

SPACE_DIM = 64
"""Dimensions of both embedding spaces, raw (PCA of the backbone's features) and head (learned)."""


class LabelState(IntEnum):
    """Where a task stands; stored in the index as the integer payload ``state``.

    MACHINE: closed by an annotation that a certificate made. It teaches nothing and counts as nobody's label.
    """

    OPEN = 0
    LABELLED = 1
    SKIPPED = 2
    MACHINE = 3


def without_credentials(url: str) -> str:
    """The address without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else url


@dataclass(frozen=True, slots=True)
class ProjectRef:
    """One Label Studio project of one Label Studio instance."""

    origin: str
    id: int

    @property
    def slug(self) -> str:
        """A name that is safe in a file path and a Redis key, unique per origin and project.

        Several Label Studios may share a host, each below a path of its own.
        """
        parts = urlsplit(without_credentials(self.origin))
        name = (parts.netloc or parts.path).replace(":", "_").replace("/", "_")
        if parts.netloc and (path := parts.path.strip("/")):
            digest = hashlib.blake2b(path.encode(), digest_size=4).hexdigest()
            name += f"_{re.sub('[^A-Za-z0-9.-]', '_', path)[:60]}-{digest}"
        return f"{parts.scheme}_{name}_{self.id}"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One person's answer for one task, or the ``machine``'s; ``skipped`` is ``was_cancelled``."""

    id: AnnotationId
    task: TaskId
    annotator: int
    labels: tuple[str, ...]
    skipped: bool = False
    lead_time: float | None = None
    created_at: str = ""
    suggested: PredictionId | None = None
    machine: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """A Label Studio task as far as Rush needs it."""

    id: TaskId
    data: Mapping[str, Any]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """A prediction as stored in Label Studio: the place of its task in the queue."""

    id: PredictionId
    task: TaskId
    score: float | None
    model_version: str


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """Everything Label Studio knows about one task."""

    task: Task
    annotations: tuple[Annotation, ...] = ()
    predictions: tuple[PredictionRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What Rush thinks of one image.

    ``labels`` are preselected (one for a single choice, any number for a multiple choice);
    ``ranked`` lists classes with probabilities, likeliest first; ``confidence`` is in [0, 1].
    """

    labels: tuple[str, ...]
    confidence: float
    ranked: tuple[tuple[str, float], ...] = ()
    space: str = ""


EMPTY = Suggestion(labels=(), confidence=0.0)


def text_of(value: Any) -> str:
    """The text, or nothing where it is none, or none that UTF-8 can carry (a lone surrogate)."""
    if not isinstance(value, str):
        return ""
    try:
        value.encode()
    except UnicodeEncodeError:
        return ""
    return value
