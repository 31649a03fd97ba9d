"""What the command line and the demo do with a project: services put together with this machine's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import strategies
from ml_backend.bootstrap import Container
from ml_backend.controls import taken_in
from ml_backend.domain.errors import BadRequest, RushError
from ml_backend.domain.events import StrategyChosen
from ml_backend.domain.model import ProjectRef
from ml_backend.operations.default_config import default_label_config
from ml_backend.operations.existing import existing
from ml_backend.services.connecting import connect as connecting
from ml_backend.services.connecting.connect import Step
from ml_backend.services.connecting.doctor import Finding
from ml_backend.services.connecting.doctor import doctor as examine
from ml_backend.services.datasets.importer import Importer, ImportReport, Progress
from ml_backend.services.datasets.sources import SourceItem, read_source
from ml_backend.services.embedding.image_size import spread
from ml_backend.services.embedding.ingest import ask_again
from ml_backend.services.retiring.retire import revive

HEAD = 1_000_000
"""Bytes of a file that tell how large its picture is."""


def connect(
    container: Container,
    project: int | None = None,
    title: str = "",
    label_config: str | None = None,
    progress: Callable[[Step], None] = lambda step: None,
    *,
    control: str | None = None,
    renames: Sequence[str] = (),
) -> int:
    """Connect a project by id, or by title (made where there is none); returns its id.

    ``label_config`` is given to a project that has none yet; by default it is that of ``label_config.xml``.
    ``control``: the name of the one to predict, "" for the first that is asked of every image. ``renames``:
    OLD=NEW for classes that were renamed in Label Studio, OLD= to take one back.
    """
    if label_config is None:
        label_config = default_label_config()
    if project is None:
        project, step = connecting.find_or_create(container.studio, title, label_config)
        progress(step)
    connecting.connect(
        existing(container, project),
        container.studio,
        container.state,
        container.settings,
        label_config=label_config,
        control=control,
        renames=renames,
        progress=progress,
    )
    revive(container.ref(project), container.state, container.jobs)
    if control is not None or renames:
        container.jobs.enqueue("sync", container.ref(project))  # answers are read anew
    if (last := _taken_in(container, container.ref(project))) is not None:
        progress(last)
    return project


def _taken_in(container: Container, ref: ProjectRef) -> Step | None:
    """Have a worker read a project of which nothing is known here: a Label Studio may have moved."""
    if container.state.tasks(ref):
        return None
    container.jobs.enqueue("sync", ref)
    detail = "a worker reads them from Label Studio now"
    moved = [known.origin for known in container.state.projects() if known.id == ref.id and known != ref]
    if moved:
        detail += f"; project {ref.id} of {', '.join(moved)} stays apart, with its strategy and audit samples"
    return Step("tasks", "open", detail)


def choose_strategy(container: Container, project: int, name: str) -> None:
    """Switch a project's strategy for everybody; BadRequest lists what there is."""
    try:
        strategies.get(name)
    except strategies.UnknownStrategy as error:
        raise BadRequest(str(error)) from None
    ref = existing(container, project)
    container.state.set_options(ref, strategy=name)
    container.state.publish(ref, StrategyChosen())


def chosen_strategy(container: Container, project: int) -> str:
    """The strategy that orders a project's queue."""
    options = container.state.options(existing(container, project))
    return options.get("strategy") or container.settings.strategy


def train(container: Container, project: int, *, full: bool = False) -> str:
    """Ask a worker to learn from all labels, ``full`` with the backbone; returns why none will, if so."""
    ref = existing(container, project)
    if full:
        container.jobs.enqueue("finetune", ref, force=True)
    else:
        container.jobs.enqueue("train", ref, force=True)
    return container.missing_workers()


def sync(container: Container, project: int) -> None:
    """Rebuild the state of a project from Label Studio, in this process."""
    from ml_backend import jobs  # what workers need takes a second to load

    jobs.sync(existing(container, project), again=True)


def import_images(
    container: Container, project: int, source: Path, progress: Progress = lambda stage, done, total: None
) -> ImportReport:
    """Import the images of a folder, .json or .csv file; run again it imports what is new."""
    ref = existing(container, project)
    config = str(container.studio.project(project).get("label_config", ""))
    control, change = taken_in(container.state.options(ref), config)
    container.state.set_options(ref, **change)
    revive(ref, container.state, container.jobs)
    ask_again(ref, container.state)
    items = list(read_source(source, control.image_key))
    container.settle_image_size(ref, _bytes_of(spread(items), container, ref))
    feature_set = container.feature_set(ref)
    importer = Importer(
        ref,
        control,
        container.settings,
        container.studio,
        container.sink,
        container.state,
        container.features(feature_set),
        container.learner(ref),
        lambda: container.embedder(feature_set),
        progress,
    )
    return importer.run(items)


def _bytes_of(items: Iterable[SourceItem], container: Container, ref: ProjectRef) -> Iterator[bytes]:
    """The beginnings of images that can be read; the import says why the others can't."""
    for item in items:
        with suppress(RushError, OSError):
            if item.path is None:
                yield container.studio.download(item.address, ref.id)
            else:
                with item.path.open("rb") as file:
                    yield file.read(HEAD)


def doctor(
    container: Container, project: int, progress: Callable[[Finding], None] = lambda finding: None
) -> list[Finding]:
    """Check a connected project; each finding is told as soon as it is made."""
    return examine(
        container.ref(project),
        container.studio,
        container.state,
        container.settings,
        workers=container.missing_workers,
        progress=progress,
    )
