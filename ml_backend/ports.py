"""What the services need from the outside world, as Protocols; ``adapters`` implement them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ml_backend.controls import Control
from ml_backend.domain.audit_sample import AuditSample
from ml_backend.domain.events import Event
from ml_backend.domain.generation import Array, Floats, Generation, Head, Projection
from ml_backend.domain.model import (
    Annotation,
    AnnotationId,
    ContentKey,
    LabelState,
    PredictionId,
    PredictionRow,
    ProjectRef,
    TaskId,
    TaskRecord,
)
from ml_backend.domain.unread import Unread


@dataclass(frozen=True, slots=True)
class Reply:
    """What another web process answered."""

    status: int
    body: bytes
    content_type: str | None


class LabelStudio(Protocol):
    """One Label Studio instance. Every call raises LabelStudioError with status, URL and next step."""

    origin: str

    def project(self, project: int) -> dict[str, Any]:
        """The project's JSON; NotFound if there is none."""

    def update_project(self, project: int, **fields: Any) -> dict[str, Any]: ...

    def records(self, project: int, control: Control | None = None) -> Iterator[TaskRecord]:
        """Every task with its annotations and predictions, streamed page by page.

        The project's ``control`` reads the annotations' labels; without one none are read.
        """

    def import_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[TaskId]:
        """Import tasks in one request; returns their ids in the order of ``tasks``."""

    def create_prediction(
        self, project: int, task: TaskId, score: float, result: list[dict[str, Any]]
    ) -> PredictionId: ...

    def update_prediction(self, prediction: PredictionId, score: float, result: list[dict[str, Any]]) -> None:
        """One PATCH; NotFound if the prediction is gone."""

    def delete_prediction(self, prediction: PredictionId) -> None:
        """Idempotent: a prediction that is gone already is fine."""

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        """Append ``{"task": id, **wire.prediction(…)}`` in one request; returns how many were created."""

    def predictions(self, project: int, tasks: Sequence[TaskId] | None = None) -> list[PredictionRow]:
        """Prediction rows of the project, of these tasks only where given."""

    def update_task(
        self, task: TaskId, *, meta: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None
    ) -> None:
        """One PATCH; what is given replaces the stored value whole."""

    def next_task(self, project: int) -> TaskId | None:
        """The task that Label Studio would serve now to the token's user."""

    def download(self, url: str, project: int | None = None) -> bytes:
        """The bytes behind a task's image value; BadImage if refused, too large or not there.

        Cloud addresses (s3://, gs://, …) are resolved through the storages of ``project``.
        """

    def call(self, method: str, path: str, **request: Any) -> Any:
        """Any other request (``json=``, ``params=``, ``files=``) and its JSON answer."""

    def close(self) -> None: ...


class TaskSink(Protocol):
    """How tasks and files get into Label Studio."""

    def ensure_storage(self, project: int, folder: Path) -> None:
        """Make Label Studio serve the files below ``folder`` to this project."""

    def upload(self, project: int, files: Sequence[Path]) -> list[str]:
        """Upload files; returns their addresses in order."""

    def import_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[TaskId]:
        """Create tasks in one request; returns their ids in order."""

    def close(self) -> None: ...


class Index(Protocol):
    """Nearest neighbours among a project's tasks, in named vector spaces, filtered by label state.

    Vectors are unit length, similarity is cosine. A task that is unknown is simply not found.
    """

    def build(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        """Replace everything: task ids (n,) int64, per space (n, SPACE_DIM), states (n,) of LabelState."""

    def upsert(self, tasks: Array, vectors: Mapping[str, Floats], states: Array) -> None:
        """Add or replace these tasks."""

    def mark(self, tasks: Sequence[int], state: LabelState) -> None:
        """Set the label state of these tasks."""

    def delete(self, tasks: Sequence[int]) -> None: ...

    def neighbours(self, space: str, vector: Floats, k: int, state: LabelState) -> tuple[Array, Floats]:
        """The at most ``k`` nearest tasks in that state: ids (m,) int64, similarities (m,), nearest first."""

    def vectors(self, space: str, tasks: Sequence[int]) -> dict[int, Floats]:
        """Stored vectors of these tasks; unknown ones are left out."""

    def __len__(self) -> int: ...

    def close(self) -> None: ...


class Features(Protocol):
    """Backbone features by content key: append-only float16 on disk, safe for many processes."""

    dim: int

    def __contains__(self, key: ContentKey) -> bool: ...

    def missing(self, keys: Iterable[ContentKey]) -> list[ContentKey]:
        """The keys without features, in order, each once."""

    def append(self, keys: Sequence[ContentKey], features: Array) -> None:
        """Store features (n, F); keys that are there already are ignored. Durable on return."""

    def get(self, keys: Sequence[ContentKey]) -> Array:
        """(n, F) float16; KeyError names the first missing key."""


class Embedder(Protocol):
    """Turns image bytes into backbone features."""

    name: str
    dim: int

    def embed(self, images: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Floats | Exception]]:
        """(name, file bytes) → (name, features (F,)) or (name, BadImage), in order and lazily."""

    def close(self) -> None: ...


class Trainer(Protocol):
    """Fits a head on cached features."""

    def fit(self, features: Array, targets: Array, *, multiple: bool, pca: Array, seed: int = 0) -> Head:
        """features (n, F), targets (n,) classes or (n, C) 0/1; ``pca`` (SPACE_DIM, F) initialises."""


class Finetuner(Protocol):
    """Trains a whole backbone on labelled images."""

    def tune(
        self,
        keys: Sequence[ContentKey],
        images: Iterable[tuple[str, bytes]],
        targets: Array,
        validation: Array,
        *,
        multiple: bool,
        progress: Callable[[int, int], None],
    ) -> str:
        """Train on (key, file bytes) with targets (n,) classes or (n, C) 0/1 of the first n ``keys``.

        Keys beyond these are images without a label, which are trained on as far as the network is sure of
        them. ``validation`` (n,) bool: images that only say when to stop. Returns the name of the new feature
        set; what was trained before on just the same is not trained again, and ``images`` not read.
        """


class Projector(Protocol):
    """Lays embeddings out in two dimensions."""

    def project(self, embeddings: Floats, initial: Array | None = None) -> Floats:
        """(n, d) → (n, 2) in [0, 1]; ``initial`` (n, 2) keeps the map steady (NaN rows: new images)."""

    def warm(self) -> None:
        """Compile what the first map would wait for."""


class Artifacts(Protocol):
    """Published generations, projections and audit samples of projects, as files; publishing is atomic."""

    def generation(self, project: ProjectRef) -> Generation | None: ...

    def publish_generation(self, project: ProjectRef, generation: Generation) -> None: ...

    def generation_number(self, project: ProjectRef) -> int | None:
        """Cheap: the number of the current generation."""

    def projection(self, project: ProjectRef) -> Projection | None: ...

    def publish_projection(self, project: ProjectRef, projection: Projection) -> None: ...

    def audit_sample(self, project: ProjectRef, number: int | None = None) -> AuditSample | None:
        """The current audit sample, or the one of that number.

        All are kept as files: neither Label Studio nor State can make them anew.
        """

    def audit_sample_numbers(self, project: ProjectRef) -> list[int]:
        """The numbers of all audit samples of the project, ascending."""

    def publish_audit_sample(self, project: ProjectRef, audit_sample: AuditSample) -> None: ...


class Leases(Protocol):
    """Which of several web processes owns a project; only that one serves it."""

    url: str

    def owner(self, project: ProjectRef) -> str:
        """The owner's address; this process's own ``url`` where nobody else owns the project by now."""

    def close(self) -> None:
        """Give everything back."""


class Replicas(Protocol):
    """The other web processes, over HTTP."""

    def send(self, address: str, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Hand a request to the replica at this address; Unavailable where it does not answer in time."""


@dataclass(frozen=True, slots=True)
class StoreMemory:
    """Bytes in use, the ``limit`` (0: none), and what happens there; no ``policy`` where nobody may ask."""

    policy: str
    used: int = 0
    limit: int = 0


class State(Protocol):
    """The shared cache of what Label Studio holds (Redis); ``sync`` rebuilds it.

    Every write is idempotent. All of it is per project.
    """

    def projects(self) -> list[ProjectRef]: ...

    def forget(self, project: ProjectRef) -> None:
        """It is no project any more."""

    def first_for(self, what: str, seconds: float) -> bool:
        """Whether nobody has asked this, over all processes, for so many seconds."""

    def memory(self) -> StoreMemory:
        """Whether the store has room, and keeps what it is given."""

    def options(self, project: ProjectRef) -> dict[str, str]:
        """Per-project choices and facts: strategy, label_config, …"""

    def set_options(self, project: ProjectRef, **options: str) -> None: ...

    def settle_option(self, project: ProjectRef, name: str, value: str) -> None:
        """Set an option unless it is set: of several processes the first decides."""

    def tasks(self, project: ProjectRef, only: Sequence[TaskId] | None = None) -> dict[TaskId, ContentKey]:
        """Every known task, or those of ``only``; the key is empty where its image is not embedded."""

    def set_tasks(self, project: ProjectRef, tasks: Mapping[TaskId, ContentKey]) -> None: ...

    def delete_tasks(self, project: ProjectRef, tasks: Iterable[TaskId]) -> None:
        """Forget tasks with their annotations and queue rows."""

    def annotations(self, project: ProjectRef) -> list[Annotation]: ...

    def annotation(self, project: ProjectRef, annotation: AnnotationId) -> Annotation | None: ...

    def set_annotations(self, project: ProjectRef, annotations: Iterable[Annotation]) -> None: ...

    def delete_annotations(self, project: ProjectRef, annotations: Iterable[AnnotationId]) -> None: ...

    def window(self, project: ProjectRef) -> dict[TaskId, tuple[PredictionId, float]]:
        """Tasks that hold a prediction: its id (0 where not known yet) and its score."""

    def set_window(self, project: ProjectRef, rows: Mapping[TaskId, tuple[PredictionId, float]]) -> None: ...

    def drop_window(self, project: ProjectRef, tasks: Iterable[TaskId]) -> None: ...

    def push_scores(self, project: ProjectRef, count: int) -> range:
        """``count`` fresh scores in front of everything: strictly decreasing, atomic over processes."""

    def append_scores(self, project: ProjectRef, count: int) -> range:
        """``count`` fresh scores behind everything: strictly increasing, atomic over processes."""

    def note_submit(self, project: ProjectRef) -> None:
        """Somebody submitted just now; background writers yield to people."""

    def seconds_since_submit(self, project: ProjectRef) -> float:
        """Seconds since the last ``note_submit``; infinite where there was none."""

    def written(self, project: ProjectRef) -> dict[TaskId, str]:
        """What ``write_back`` last wrote to each task."""

    def set_written(self, project: ProjectRef, written: Mapping[TaskId, str]) -> None: ...

    def read_before(
        self, project: ProjectRef, tasks: Sequence[TaskId]
    ) -> dict[TaskId, tuple[ContentKey, str]]:
        """Of these tasks the ones that have a key: that, and its source or ""."""

    def sources(self, project: ProjectRef) -> dict[TaskId, str]:
        """The ``address_digest`` of the address that each task's key was read at, as far as it is known."""

    def set_sources(self, project: ProjectRef, sources: Mapping[TaskId, str]) -> None: ...

    def unread(self, project: ProjectRef) -> dict[str, Unread]:
        """The images that can't be read, by the ``address_digest`` of their address."""

    def set_unread(self, project: ProjectRef, unread: Mapping[str, Unread]) -> None: ...

    def drop_unread(self, project: ProjectRef, addresses: Iterable[str] | None = None) -> None:
        """Forget that these can't be read; without ``addresses`` (digests) none is left."""

    def note_reading(self, project: ProjectRef, run: str, addresses: Iterable[str]) -> None:
        """A run is about to read these (digests); what is noted when its worker dies is suspected."""

    def reading(self, project: ProjectRef, run: str) -> set[str]:
        """What a run has noted."""

    def end_reading(self, project: ProjectRef, run: str) -> None:
        """The run has ended well, or its notes were looked at."""

    def suspects(self, project: ProjectRef) -> dict[str, int]:
        """How many workers died while they read each of these addresses (digests)."""

    def set_suspects(self, project: ProjectRef, deaths: Mapping[str, int]) -> None:
        """Note deaths; 0 clears an address."""

    def given_up(self, project: ProjectRef) -> dict[str, int]:
        """The kinds of jobs that are not begun for a while, and how many workers each has killed."""

    def publish(self, project: ProjectRef, event: Event) -> None:
        """Tell every process what changed."""

    def listen(self, timeout: float) -> Iterator[tuple[ProjectRef, Event]]:
        """Events as they come; ends after ``timeout`` seconds without one."""


class Jobs(Protocol):
    """Background work in RQ workers."""

    def enqueue(self, job: str, project: ProjectRef, **arguments: Any) -> None:
        """Run ``jobs.<job>`` soon; not queued twice while one with the same arguments still waits."""

    def waits(self, job: str, project: ProjectRef) -> bool:
        """Whether such a job of the project has yet to begin."""
