"""What RQ workers run; each job is idempotent and says what has to follow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import cache, partial, wraps
from typing import Any

from ml_backend.bootstrap import Container
from ml_backend.controls import Control, control_of, must_read_anew, taken_in
from ml_backend.controls.lost_answers import lost_answers
from ml_backend.domain.content_hash import address_digest
from ml_backend.domain.errors import NotFound, NotReady, UnusableConfig
from ml_backend.domain.events import Synced
from ml_backend.domain.model import ProjectRef, TaskId
from ml_backend.services.embedding import ingest as ingesting
from ml_backend.services.embedding.image_size import spread
from ml_backend.services.learning.finetune import FinetuningRun
from ml_backend.services.retiring.retire import retire_if_gone, retired, revive
from ml_backend.services.syncing import sync as syncing
from ml_backend.services.syncing import write_coordinates as writing
from ml_backend.settings import Settings
from ml_backend.wire import image_of

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0
SHARD = 2000
"""Images of one ingest job, half a minute to some minutes of work: what a killed worker loses at most."""
DAY = 86_400.0
TURN_SECONDS = 5.0
"""How long writing coordinates may keep new images waiting."""


@cache
def container() -> Container:
    """The worker's adapters, kept from job to job so that nothing is loaded twice."""
    return Container(Settings())


def warm() -> None:
    """Compile and load what the first map and the first head would otherwise wait for: some ten seconds."""
    began = time.monotonic()
    container().trainer  # noqa: B018 - made here, used later
    container().projector.warm()
    log.info("Warm after %.0f s.", time.monotonic() - began)


def _of_a_project(job: Callable[..., None]) -> Callable[..., None]:
    """The job, left out for a project that Label Studio has no more, unless a person asks (``again``)."""

    @wraps(job)
    def run(ref: ProjectRef, *given: Any, **named: Any) -> None:
        here, asked = container(), bool(named.get("again"))
        if retired(ref, here.state) and not asked:
            log.info("project %s: no %s, Label Studio has no such project.", ref.id, job.__name__)
            return
        try:
            job(ref, *given, **named)
        except NotFound:
            if not retire_if_gone(ref, here.studio, here.state) or asked:
                raise

    return run


@_of_a_project
def ingest(ref: ProjectRef, images: Mapping[str, str]) -> None:
    """Embed the images of these tasks, then lay out the map; many are shared out over all workers."""
    here = container()
    here.settle_image_size(ref, ingesting.downloads(ref, here.studio, spread(list(images.values()))))
    if len(images) > SHARD:
        pairs = list(images.items())
        for start in range(0, len(pairs), SHARD):
            here.jobs.enqueue("ingest", ref, images=dict(pairs[start : start + SHARD]))
        return
    addresses = {TaskId(int(task)): address for task, address in images.items()}
    feature_set = here.feature_set(ref)
    features, embedder = here.features(feature_set), here.embedder(feature_set)
    progress = _log_progress(ref, "embedded")
    report = ingesting.ingest(ref, addresses, here.studio, here.state, features, embedder, progress)
    if report.embedded:
        here.jobs.enqueue("lay_out_map", ref)


@_of_a_project
def lay_out_map(ref: ProjectRef) -> None:
    """Lay out the map of all images and write it back.

    While more are being embedded only where a map is lacking, or holds less than half of them.
    """
    here = container()
    if here.jobs.waits("ingest", ref):  # the last one to end asks for the map again
        projection, images = here.artifacts.projection(ref), len(here.learner(ref).embedded(ref))
        if projection is not None and 2 * len(projection.keys) >= images:
            return
    here.learner(ref).map(ref)
    _then_write_back(here, ref)


project = lay_out_map
"""The name under which an older backend may have queued it."""


@_of_a_project
def train(ref: ProjectRef, force: bool = False) -> None:
    """Learn from all labels; where a new head is published the map follows it."""
    here = container()
    _read_the_answers_asked_for(here, ref)
    try:
        outcome = here.learner(ref).learn(ref)
    except NotReady as error:
        log.warning("project %s: %s", ref.id, error)
        return
    if outcome.generation is not None:
        here.jobs.enqueue("lay_out_map", ref)


def _read_the_answers_asked_for(here: Container, ref: ProjectRef) -> None:
    """Sync first where another control was chosen, or a class renamed: what was read must not teach."""
    options = here.state.options(ref)
    if must_read_anew(options, control_of(options)):
        sync(ref)


@_of_a_project
def finetune(ref: ProjectRef, force: bool = False) -> None:
    """Fine-tune the backbone on all labels, embed every image anew, and publish what is better."""
    here = container()
    _read_the_answers_asked_for(here, ref)

    def embed(feature_set: str, addresses: Mapping[TaskId, str]) -> None:
        addresses = _due(here, ref, addresses)
        features, embedder = here.features(feature_set), here.embedder(feature_set)
        progress = _log_progress(ref, "embedded anew")
        ingesting.ingest(ref, addresses, here.studio, here.state, features, embedder, progress)

    told: dict[str, Callable[[int, int], None]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        told.setdefault(stage, _log_progress(ref, stage, "steps"))(done, total)

    current = here.learner(ref)
    tuner = here.finetuner(ref)
    round_ = FinetuningRun(current, partial(here.learner, ref), embed, tuner, here.studio, progress)
    try:
        outcome = round_.run(ref)
    except NotReady as error:
        log.warning("project %s: %s", ref.id, error)
        return
    if outcome.generation is not None:
        here.jobs.enqueue("lay_out_map", ref)
        here.jobs.enqueue("sync", ref)  # images that came in meanwhile


@_of_a_project
def sync(ref: ProjectRef, again: bool = False) -> None:
    """Rebuild the shared state from Label Studio and embed what lacks.

    Where nothing can be predicted by the label config of the moment that of before stays, if there is one.
    Images that can't be read wait for their next try, unless a person asks for them ``again``.
    """
    here = container()
    control = _control_now(here, ref)
    if again:
        revive(ref, here.state, here.jobs)
        ingesting.ask_again(ref, here.state)
    features = here.features(here.feature_set(ref))
    report = syncing.sync(ref, here.studio, here.state, control, features=features)
    here.state.set_options(ref, reading=control.reading)
    here.state.publish(ref, Synced())
    if (lost := lost_answers(control, here.state.annotations(ref))).count:
        log.warning("project %s: %s. They teach nothing: rush connect --rename OLD=NEW.", ref.id, lost)
    lacking = {task.id: address for task in report.to_embed if (address := image_of(task, control))}
    if images := _due(here, ref, lacking):
        here.jobs.enqueue("ingest", ref, images={str(task): address for task, address in images.items()})
    elif here.artifacts.generation(ref) is None and here.state.tasks(ref):
        here.jobs.enqueue("lay_out_map", ref)
    if here.state.first_for("prune", DAY):
        here.jobs.enqueue("prune", ref)


def prune(ref: ProjectRef) -> None:
    """Delete what nobody needs any more, of whatever project; once a day."""
    gone = container().prune()
    if gone:
        log.info("Deleted, as nobody needs it any more: %s.", ", ".join(gone))


def _due(here: Container, ref: ProjectRef, images: Mapping[TaskId, str]) -> dict[TaskId, str]:
    """The images that are asked for now: not those that could not be read a while ago."""
    unread, now = here.state.unread(ref), time.time()
    if not unread:
        return dict(images)
    waits = {digest for digest, it in unread.items() if not it.due(now)}
    return {task: address for task, address in images.items() if address_digest(address) not in waits}


def _control_now(here: Container, ref: ProjectRef) -> Control:
    """The control by Label Studio's label config, which is noted where it can be used."""
    config, options = str(here.studio.project(ref.id).get("label_config", "")), here.state.options(ref)
    try:
        control, change = taken_in(options, config)
    except UnusableConfig as error:
        if not options.get("label_config"):
            raise
        log.warning("project %s: %s The label config of before stays until it can be used.", ref.id, error)
        return control_of(options)
    here.state.set_options(ref, **change)
    return control


class TurnOver(Exception):
    """A long job has had its turn; what is left is queued again."""


@_of_a_project
def write_back(ref: ProjectRef) -> None:
    """Write the map's coordinates to the tasks' metadata, in short turns."""
    here = container()
    projection = here.artifacts.projection(ref)
    if projection is None:
        return
    tasks = here.state.tasks(ref)
    answered = {annotation.task for annotation in here.state.annotations(ref)}
    order = writing.order_of(tasks, here.state.window(ref), answered)
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


def _then_write_back(here: Container, ref: ProjectRef) -> None:
    if here.settings.coordinates != "off":
        here.jobs.enqueue("write_back", ref)


def _log_progress(ref: ProjectRef, what: str, of: str = "images") -> Callable[[int, int], None]:
    told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > PROGRESS_SECONDS or done == total:
            told = time.monotonic()
            log.info("project %s: %d of %d %s %s", ref.id, done, total, of, what)

    return progress
