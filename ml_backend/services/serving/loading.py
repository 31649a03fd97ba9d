"""A project's pool in memory: made anew from state, features and generation while events go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ml_backend.controls import control_of, is_read_by
from ml_backend.domain.generation import Generation
from ml_backend.domain.lock_order import OrderedLock, Rank
from ml_backend.domain.model import ContentKey, ProjectRef, TaskId
from ml_backend.ports import Artifacts, Features, Index, Jobs, LabelStudio, State
from ml_backend.services.queue.index_mirror import IndexMirror
from ml_backend.services.queue.placement import Placement
from ml_backend.services.queue.pool import ProjectPool
from ml_backend.services.serving.memory import give_back
from ml_backend.settings import Settings


@dataclass(frozen=True, slots=True)
class ProjectPorts:
    """Everything a project needs from outside."""

    settings: Settings
    state: State
    artifacts: Artifacts
    features: Callable[[ProjectRef, Generation | None], Features]
    jobs: Jobs
    studio: LabelStudio
    open_index: Callable[[ProjectRef], Index]


class Loader:
    """Holds the current pool, and makes its successor; what changes meanwhile changes in both.

    Raises UnusableConfig where the label config has nothing to predict.
    """

    def __init__(self, ref: ProjectRef, ports: ProjectPorts) -> None:
        self._ref, self._ports = ref, ports
        self.index = ports.open_index(ref)
        options = ports.state.options(ref)
        self.label_config = options.get("label_config", "")
        self.pool = ProjectPool(ref, control_of(options), None)
        self.features = ports.features(ref, None)
        self.events = OrderedLock(Rank.EVENTS)
        """Held by whoever changes state and pool together."""
        self.published: int | None = None
        self._place: Placement | None = None
        self._loading = OrderedLock(Rank.LOADING)
        self._missed: list[Callable[[ProjectPool], object]] | None = None

    def load(self, take: Callable[[], None]) -> None:
        """Make everything anew; ``take`` runs as the fresh pool takes the old one's place."""
        with self._loading:
            ports, ref = self._ports, self._ref
            options = ports.state.options(ref)
            label_config, control = options.get("label_config", ""), control_of(options)
            published = ports.artifacts.generation_number(ref)
            generation, projection = ports.artifacts.generation(ref), ports.artifacts.projection(ref)
            fresh = ProjectPool(ref, control, generation)
            place = None if projection is None else Placement(projection)
            with self.events:
                self._missed = []
            try:
                features = ports.features(ref, generation)
                fresh.add(ports.state.tasks(ref), features, place)
                annotations = ports.state.annotations(ref)
                if not is_read_by(options, control):  # until the sync has read them anew
                    annotations = [replace(note, labels=(), skipped=True) for note in annotations]
                fresh.load_annotations(annotations)
                mirror = IndexMirror(self.index)
                mirror.build(fresh, also=self.pool.searched)
                with self.events:
                    fresh.mirror = mirror
                    for change in self._missed:  # what happened while we were loading
                        change(fresh)
                    mirror.mark_changes(fresh)
                    fresh.version += self.pool.version
                    self.label_config, self.published = label_config, published
                    self.pool, self._place, self.features = fresh, place, features
                    take()
            finally:
                self._missed = None
        give_back()

    def change(self, change: Callable[[ProjectPool], object]) -> None:
        """Change the pool, and the one that may be loading just now; the caller holds ``events``."""
        change(self.pool)
        if self._missed is not None:
            self._missed.append(change)

    def add(self, keys: Mapping[TaskId, ContentKey]) -> None:
        """Take tasks in, or the images that they have got."""
        with self.events:
            place, features = self._place, self.features
            self.change(lambda pool: pool.add(keys, features, place))
