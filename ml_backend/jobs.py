"""What RQ workers run; each job is idempotent and says what has to follow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import cache

from ml_backend.bootstrap import Parts
from ml_backend.domain import ProjectRef, TaskId
from ml_backend.errors import NotReady
from ml_backend.label_config import parse_label_config
from ml_backend.services import ingest as ingesting
from ml_backend.services import sync as syncing
from ml_backend.services import write_back as writing
from ml_backend.services.learn import Learner
from ml_backend.settings import Settings
from ml_backend.wire import image_of

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0
TURN_SECONDS = 5.0
"""How long writing coordinates may keep new images waiting."""


@cache
def parts() -> Parts:
    """The worker's adapters, kept from job to job so that nothing is loaded twice."""
    return Parts(Settings())


def warm() -> None:
    """Compile and load what the first map and the first head would otherwise wait for: some ten seconds."""
    began = time.monotonic()
    parts().trainer  # noqa: B018 - made here, used later
    parts().projector.warm()
    log.info("Warm after %.0f s.", time.monotonic() - began)


def learner(parts: Parts) -> Learner:
    """The rounds of a worker over its adapters."""
    return Learner(
        parts.state,
        parts.artifacts,
        parts.features,
        parts.feature_set,
        lambda: parts.trainer,
        lambda: parts.projector,
    )


def ingest(ref: ProjectRef, images: Mapping[str, str]) -> None:
    """Embed the images of these tasks, then lay out the map."""
    here = parts()
    addresses = {TaskId(int(task)): address for task, address in images.items()}
    report = ingesting.ingest(
        ref, addresses, here.studio, here.state, here.features, here.embedder, _log_progress(ref, "embedded")
    )
    if report.embedded:
        here.jobs.enqueue("project", ref)


def project(ref: ProjectRef) -> None:
    """Lay out the map of all images and write it back."""
    here = parts()
    learner(here).map(ref)
    _then_write_back(here, ref)


def train(ref: ProjectRef, force: bool = False) -> None:
    """Learn from all labels; where a new head is published the map follows it."""
    here = parts()
    try:
        outcome = learner(here).learn(ref)
    except NotReady as error:
        log.warning("project %s: %s", ref.id, error)
        return
    if outcome.generation is not None:
        here.jobs.enqueue("project", ref)


def sync(ref: ProjectRef) -> None:
    """Rebuild the shared state from Label Studio and embed what lacks."""
    here = parts()
    config = str(here.studio.project(ref.id).get("label_config", ""))
    here.state.set_options(ref, label_config=config)
    spec = parse_label_config(config)
    report = syncing.sync(ref, here.studio, here.state, spec, features=here.features)
    here.state.publish(ref, "synced")
    images = {str(task.id): address for task in report.to_embed if (address := image_of(task, spec))}
    if images:
        here.jobs.enqueue("ingest", ref, images=images)
    elif here.artifacts.generation(ref) is None and here.state.tasks(ref):
        here.jobs.enqueue("project", ref)


class TurnOver(Exception):
    """A long job has had its turn; what is left is queued again."""


def write_back(ref: ProjectRef) -> None:
    """Write the map's coordinates to the tasks' metadata, nearest to the queue first, in short turns."""
    here = parts()
    projection = here.artifacts.projection(ref)
    if projection is None:
        return
    window = here.state.window(ref)
    tasks = here.state.tasks(ref)
    order = sorted(tasks, key=lambda task: (task not in window, window.get(task, (0, 0.0))[1], task))
    as_data = here.settings.coordinates == "data"
    end = time.monotonic() + TURN_SECONDS

    def turn(*_: int) -> None:
        if time.monotonic() > end:
            raise TurnOver

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        turn()

    try:
        writing.write_back(ref, here.studio, here.state, tasks, projection, order, as_data, turn, sleep)
    except TurnOver:
        here.jobs.enqueue("write_back", ref)


def _then_write_back(here: Parts, ref: ProjectRef) -> None:
    if here.settings.coordinates != "off":
        here.jobs.enqueue("write_back", ref)


def _log_progress(ref: ProjectRef, what: str) -> Callable[[int, int], None]:
    told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > PROGRESS_SECONDS or done == total:
            told = time.monotonic()
            log.info("project %s: %d of %d images %s", ref.id, done, total, what)

    return progress
