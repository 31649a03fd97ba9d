"""The composition root: the only place that knows which adapter stands behind which port."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ml_backend.domain.deadline import PROMPT
from ml_backend.domain.errors import BadRequest, StoreError
from ml_backend.domain.generation import Array, Generation, untuned
from ml_backend.domain.model import ContentKey, ProjectRef, without_credentials
from ml_backend.domain.simulated_run import Runner
from ml_backend.ports import (
    Artifacts,
    Embedder,
    Features,
    Finetuner,
    Index,
    Jobs,
    LabelStudio,
    Leases,
    Projector,
    Replicas,
    State,
    TaskSink,
    Trainer,
)
from ml_backend.settings import Settings

if TYPE_CHECKING:
    from ml_backend.adapters.index.qdrant import QdrantIndex
    from ml_backend.adapters.memory import MemoryStudio
    from ml_backend.adapters.models.decode import Limits
    from ml_backend.adapters.processes.local_rush import LocalRush
    from ml_backend.adapters.processes.servers import LocalLabelStudio
    from ml_backend.services.learning.rounds import Learner
    from ml_backend.services.serving.registry import Projects


SIZE_OPTION = "image_size"
"""The option of a project that says which size its images were found to need."""


@dataclass(frozen=True)
class Container:
    """Every adapter of one process, made when it is first used; the web process never asks for torch."""

    settings: Settings

    @cached_property
    def redis_url(self) -> str:
        """The Redis of the settings, else the bundled one that runs in the data directory."""
        if self.settings.redis_url:
            return self.settings.redis_url
        from ml_backend.adapters.processes.servers import LocalRedis

        found = LocalRedis.url_of(self.settings.data_dir.resolve() / "redis")
        if found is None:
            raise StoreError(
                f"No Redis runs in {self.settings.data_dir.resolve()} and RUSH_REDIS_URL is not set.",
                "Run rush start, which brings one, or set RUSH_REDIS_URL.",
            )
        return found

    @cached_property
    def origin(self) -> str:
        """Label Studio's address, which with a project's id is the project's name; so without a password."""
        url = without_credentials(self.settings.label_studio_url).rstrip("/")
        if not url:
            raise BadRequest("LABEL_STUDIO_URL is not set.", "Set it to Label Studio's address.")
        return url

    def ref(self, project: int) -> ProjectRef:
        """The name of a project of this Label Studio."""
        return ProjectRef(self.origin, project)

    @cached_property
    def state(self) -> State:
        """The shared cache in Redis."""
        from ml_backend.adapters.redis.state import RedisState

        return RedisState(self.redis_url)

    @cached_property
    def leases(self) -> Leases | None:
        """Who owns which project, where several web processes run."""
        if not self.settings.replica_url:
            return None
        from ml_backend.adapters.redis.leases import RedisLeases

        return RedisLeases(self.redis_url, self.settings.replica_url)

    @cached_property
    def replicas(self) -> Replicas | None:
        """The way to the other web processes, where several run."""
        if not self.settings.replica_url:
            return None
        from ml_backend.adapters.processes.backend_client import HttpReplicas

        return HttpReplicas()

    @cached_property
    def jobs(self) -> Jobs:
        """The way to the RQ workers."""
        from ml_backend.adapters.redis.jobs import RqJobs

        return RqJobs(self.redis_url)

    @cached_property
    def studio(self) -> LabelStudio:
        """Label Studio over HTTP."""
        from ml_backend.adapters.label_studio.client import HttpLabelStudio

        settings = self.settings
        token = settings.label_studio_api_key.get_secret_value()
        if not token:
            raise BadRequest(
                "LABEL_STUDIO_API_KEY is not set.", "Set it to a token of Label Studio's account page."
            )
        return HttpLabelStudio(
            self.origin,
            token,
            allowed_hosts=settings.allowed_hosts,
            file_roots=settings.file_roots,
            max_image_bytes=int(settings.max_image_mb * 1e6),
            prediction_timeout=PROMPT,
        )

    @cached_property
    def artifacts(self) -> Artifacts:
        """Generations and maps as files."""
        from ml_backend.adapters.files.artifacts import FileArtifacts

        return FileArtifacts(self.settings.data_dir)

    def feature_set_of(self, project: ProjectRef, generation: Generation | None) -> str:
        """The features of new images: of the backbone of the settings, or as it was fine-tuned."""
        wanted = self.untuned_feature_set(project, generation)
        if generation is not None and untuned(generation.backbone) == wanted:
            return generation.backbone
        return wanted

    def untuned_feature_set(self, project: ProjectRef, generation: Generation | None) -> str:
        """The features of the backbone of the settings as delivered.

        At the size of the settings; where it is left to the images that of the generation, else what they
        were found to need.
        """
        from ml_backend.adapters.files.features import feature_set, size_of

        backbone, size = self.settings.backbone, self.settings.image_size
        if not isinstance(size, int):
            kept = None if generation is None else size_of(untuned(generation.backbone), backbone)
            size = kept or int(self.state.options(project).get(SIZE_OPTION) or self._ordinary_size)
        return feature_set(backbone, size)

    def feature_set(self, project: ProjectRef) -> str:
        """The features that the images of a project have, or are to get."""
        return self.feature_set_of(project, self.artifacts.generation(project))

    @property
    def _ordinary_size(self) -> int:
        from ml_backend.adapters.models.backbones import backbone
        from ml_backend.services.embedding.image_size import ORDINARY

        spec = backbone(self.settings.backbone)
        return spec.size if spec.fixed else ORDINARY

    def feature_set_for(self, images: Iterable[bytes]) -> str:
        """The features of images like these, of no project."""
        from ml_backend.adapters.files.features import feature_set

        return feature_set(self.settings.backbone, self._size_for(images))

    def _size_for(self, images: Iterable[bytes]) -> int:
        """The size of the settings, else the one for images like these."""
        from ml_backend.adapters.models.backbones import backbone
        from ml_backend.adapters.models.decode import longer_side
        from ml_backend.services.embedding.image_size import all_small

        if isinstance(self.settings.image_size, int):
            return self.settings.image_size
        small = backbone(self.settings.backbone).small
        sides = (side for data in images if (side := longer_side(data)) is not None)
        return small if small and all_small(sides) else self._ordinary_size

    def settle_image_size(self, project: ProjectRef, images: Iterable[bytes]) -> None:
        """Choose the size of a project by its first images, for good; ``images`` are read only where needed.

        A project whose images were embedded before keeps its size.
        """
        from ml_backend.adapters.files.features import feature_set

        if isinstance(self.settings.image_size, int) or SIZE_OPTION in self.state.options(project):
            return
        if self.artifacts.generation_number(project) is not None:
            return
        keys = [key for key in self.state.tasks(project).values() if key]
        before = self.features(feature_set(self.settings.backbone, self._ordinary_size)) if keys else None
        known = before is not None and any(key in before for key in keys)
        size = self._ordinary_size if known else self._size_for(images)
        self.state.settle_option(project, SIZE_OPTION, str(size))

    def features(self, name: str) -> Features:
        """Backbone features as files, by the name of their set."""
        from ml_backend.adapters.files.features import FileFeatures, made_with
        from ml_backend.adapters.models.backbones import backbone

        if name not in self._features:
            dim = backbone(made_with(name)[0]).dim
            self._features[name] = FileFeatures(self.settings.data_dir / "features", name, dim)
        return self._features[name]

    def features_of(self, project: ProjectRef, generation: Generation | None) -> Features:
        """The features that may be compared with those of this generation of a project."""
        return self.features(self.feature_set_of(project, generation))

    @cached_property
    def _features(self) -> dict[str, Features]:
        return {}

    def index(self, project: ProjectRef) -> Index:
        """Qdrant: the server of RUSH_QDRANT_URL, else what is embedded in this process."""
        if self.settings.qdrant_url:
            from ml_backend.adapters.index.qdrant import QdrantIndex

            settings = self.settings
            key = settings.qdrant_api_key.get_secret_value()
            return QdrantIndex(settings.qdrant_url, project.slug, key, grpc=settings.qdrant_grpc)
        from ml_backend.adapters.index.embedded import EmbeddedIndex

        return EmbeddedIndex(self.settings.data_dir / "index" / project.slug)

    def open_projects(self) -> Projects:
        """The connected projects over all adapters of the web process; ``start`` begins their maintenance."""
        from ml_backend.services.serving.loading import ProjectPorts
        from ml_backend.services.serving.registry import Projects

        ports = ProjectPorts(
            self.settings, self.state, self.artifacts, self.features_of, self.jobs, self.studio, self.index
        )
        return Projects(ports, self.origin, self.leases)

    def close(self) -> None:
        """Close the connections to Label Studio that were opened."""
        for name in ("sink", "studio"):
            if name in self.__dict__:
                self.__dict__[name].close()

    # ---- what nobody needs any more

    def prune(self) -> list[str]:
        """Delete what nobody needs from the data directory and from Redis; returns what it was."""
        from ml_backend.adapters.files import leftovers as files
        from ml_backend.adapters.redis import leftovers as redis

        slugs = {project.slug for project in self.state.projects()}
        return [
            *files.prune(self.settings.data_dir, self.feature_set_for(()), slugs),
            *redis.prune(self.redis_url),
        ]

    def forget(self, project: ProjectRef) -> None:
        """Delete what is kept of this project alone: state, jobs, generations, index, audit samples."""
        from ml_backend.adapters.redis import leftovers

        self.state.forget(project)
        leftovers.forget(self.redis_url, project)
        for kind in ("projects", "index"):
            shutil.rmtree(self.settings.data_dir / kind / project.slug, ignore_errors=True)
        if self.settings.qdrant_url:
            cast("QdrantIndex", self.index(project)).drop()

    # ---- what runs elsewhere

    def backend_status(self) -> list[dict[str, Any]]:
        """What the running backend says of its projects; NotReady where none runs."""
        from ml_backend.adapters.processes.backend_client import backend_status

        settings = self.settings
        auth = (settings.basic_auth_user, settings.basic_auth_password.get_secret_value())
        token = settings.token.get_secret_value()
        return backend_status(settings.backend_url, auth if settings.basic_auth_user else None, token)

    def missing_workers(self) -> str:
        """Which queues no worker listens to; nothing where all is well."""
        from ml_backend.adapters.redis.jobs import missing_workers

        return missing_workers(self.redis_url)

    # ---- workers only

    def work(self, only: str | None) -> None:
        """Run jobs of one kind (fast, slow, simulate), or fast and slow ones, until told to stop."""
        from ml_backend.adapters.redis.jobs import FAST, SIMULATED, SLOW, run_worker

        queues = {"fast": (FAST,), "slow": (SLOW,), "simulate": (SIMULATED,), None: (FAST, SLOW)}[only]
        run_worker(self.redis_url, queues)

    def learner(self, project: ProjectRef, feature_set: str = "") -> Learner:
        """The rounds of a project, on the features that it has or on those of a feature set."""
        from ml_backend.services.learning.rounds import Learner

        feature_set = feature_set or self.feature_set(project)
        return Learner(
            self.state,
            self.artifacts,
            self.features(feature_set),
            feature_set,
            lambda: self.trainer,
            lambda: self.projector,
        )

    @property
    def _limits(self) -> Limits:
        from ml_backend.adapters.models.decode import Limits

        return Limits(int(self.settings.max_image_mb * 1e6), int(self.settings.max_megapixels * 1e6))

    @property
    def _networks(self) -> Path:
        return self.settings.data_dir / "networks"

    def embedder(self, feature_set: str) -> Embedder:
        """Images to these features, on the GPU where there is one."""
        from ml_backend.adapters.files.features import made_with
        from ml_backend.adapters.models.embedders import open_embedder

        if feature_set not in self._embedders:
            name, size = made_with(feature_set)
            made = open_embedder(name, size, self.settings.device, self._networks, self._limits)
            self._embedders[feature_set] = made
        return self._embedders[feature_set]

    @cached_property
    def _embedders(self) -> dict[str, Embedder]:
        return {}

    def finetuner(self, project: ProjectRef) -> Finetuner:
        """Trains whole backbones, at the size of the project's images."""
        from ml_backend.adapters.files.features import made_with
        from ml_backend.adapters.models.finetuner import TorchFinetuner

        settings = self.settings
        return TorchFinetuner(
            settings.backbone,
            made_with(self.feature_set(project))[1],
            settings.device,
            self._networks,
            self._limits,
            processes=settings.gpus,
            epochs=None if settings.self_epochs < 0 else settings.self_epochs,
        )

    @cached_property
    def sink(self) -> TaskSink:
        """The way of tasks and files into Label Studio."""
        from ml_backend.adapters.label_studio.task_sink import SdkSink

        token = self.settings.label_studio_api_key.get_secret_value()
        return SdkSink(self.origin, token, self.studio)

    @cached_property
    def trainer(self) -> Trainer:
        """Fits heads."""
        from ml_backend.adapters.models.trainer_torch import TorchTrainer

        return TorchTrainer(self.settings.device)

    @cached_property
    def projector(self) -> Projector:
        """Lays out maps."""
        from ml_backend.adapters.models.projector_umap import UmapProjector

        return UmapProjector()


# ---- servers on this machine


def local_rush(settings: Settings, say: Callable[[str], None]) -> LocalRush:
    """Redis, backend and workers as children of this process, within a ``with`` block."""
    from ml_backend.adapters.processes.local_rush import LocalRush

    return LocalRush(settings, say)


def local_label_studio(folder: Path, port: int, **options: Any) -> LocalLabelStudio:
    """A Label Studio as a child of this process; ``options`` are those of ``LocalLabelStudio``."""
    from ml_backend.adapters.processes.servers import LocalLabelStudio

    return LocalLabelStudio(folder, port, **options)


def port_near(port: int) -> int:
    """The port, or the next one that is free."""
    from ml_backend.adapters.processes.child import free_port, port_is_free

    near = range(port, port + 100)
    return next((each for each in near if port_is_free(each)), 0) or free_port()


def write_digits(folder: Path) -> None:
    """Write the 1,797 handwritten digits that are missing in ``folder``."""
    from ml_backend.adapters.files.digits import write_digits

    write_digits(folder)


# ---- simulations


@dataclass(frozen=True, slots=True)
class MemoryPorts:
    """Every port of one simulated project, in memory; ``studio`` also plays Label Studio's side."""

    state: State
    artifacts: Artifacts
    studio: MemoryStudio
    index: Callable[[ProjectRef], Index]
    jobs: Jobs
    trainer: Trainer
    features: Callable[[Sequence[ContentKey], Array], Features]


def memory_ports(label_config: str, strategy: str) -> MemoryPorts:
    """Ports in memory for a project with this label config and strategy."""
    from ml_backend.adapters import memory
    from ml_backend.adapters.index.exact import ExactIndex
    from ml_backend.adapters.models.trainer_torch import TorchTrainer

    return MemoryPorts(
        cast(State, memory.MemoryState(label_config=label_config, strategy=strategy)),
        cast(Artifacts, memory.MemoryArtifacts()),
        memory.MemoryStudio(),
        lambda project: ExactIndex(),
        cast(Jobs, memory.MemoryJobs()),
        TorchTrainer("cpu"),
        lambda keys, features: cast(Features, memory.MemoryFeatures(keys, features)),
    )


def runs_on_workers(redis_url: str) -> Runner:
    """Simulated runs on the workers of ``rush worker --only simulate`` at this Redis."""
    from ml_backend.adapters.redis.simulated_runs import on_workers

    return on_workers(redis_url)


def fetched_data(digest: str, name: str) -> Path:
    """The file of a data set that a simulation put into Redis, on this worker's disk."""
    from ml_backend.adapters.redis.simulated_runs import fetched

    return fetched(digest, name)
