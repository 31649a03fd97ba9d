"""What ``rush audit`` and ``rush certify`` do: services put together with this machine's parts."""

from __future__ import annotations

from ml_backend.bootstrap import Parts
from ml_backend.domain.audit_sample import Draw
from ml_backend.domain.errors import NotReady
from ml_backend.domain.label_config import parse_label_config
from ml_backend.domain.labels import settle_all
from ml_backend.domain.model import Annotation, LabelState, TaskId
from ml_backend.services.certification import accept as accepting
from ml_backend.services.certification import audit_sample as auditing
from ml_backend.services.certification.accept import Progress
from ml_backend.services.certification.certificate import Standing, standing
from strategies.audits.target import Target


def draw_audits(
    parts: Parts,
    project: int,
    target: Target,
    *,
    count: int | None = None,
    surest: float | None = None,
    share: float = auditing.SHARE,
    hidden: bool = False,
    of_all: bool = False,
) -> Draw:
    """Draw audits from the open images and mix them into the queue."""
    ref = parts.ref(project)
    return auditing.make_draw(
        ref,
        parts.state,
        parts.artifacts,
        parts.features(parts.feature_set(ref)),
        target,
        count=count,
        surest=surest,
        share=share,
        hidden=hidden,
        of_all=of_all,
    )


def more_audits(parts: Parts, project: int, more: int) -> Draw:
    """Ask for the next audits of the current draw."""
    return auditing.ask_more(parts.ref(project), parts.state, parts.artifacts, more)


def current_draw(parts: Parts, project: int) -> Draw | None:
    """The draw that certificates are about, if there is one."""
    return parts.artifacts.draw(parts.ref(project))


def open_images(parts: Parts, project: int) -> int:
    """How many tasks nobody has answered."""
    ref = parts.ref(project)
    answered = {
        task
        for task, (state, _) in settle_all(parts.state.annotations(ref)).items()
        if state is not LabelState.OPEN
    }
    return len(parts.state.tasks(ref).keys() - answered)


def look(parts: Parts, project: int, draw: Draw, human_error: float = 0.0) -> Standing:
    """Where the draw stands by what Rush knows."""
    ref = parts.ref(project)
    return standing(draw, parts.state.tasks(ref), parts.state.annotations(ref), human_error)


def accept(parts: Parts, project: int, draw: Draw, kind: str, progress: Progress) -> tuple[Standing, int]:
    """Take the certified rest over as ``predictions`` or ``annotations``; returns how many were new.

    Label Studio is read anew and decides. NotReady where nothing is certified.
    """
    ref, studio = parts.ref(project), parts.studio
    spec = parse_label_config(str(studio.project(project).get("label_config", "")))
    total = len(parts.state.tasks(ref))
    tasks: list[TaskId] = []
    annotations: list[Annotation] = []
    for record in studio.records(project):
        tasks.append(record.task.id)
        annotations += record.annotations
        progress("reading", len(tasks), max(total, len(tasks)))
    found = standing(draw, tasks, annotations)
    if found.accepted is None or not len(found.rest):
        raise NotReady(
            "Nothing can be taken over now.", f"What is lacking says: rush certify --project {project}"
        )
    certified = [found.suggestion(int(position)) for position in found.rest]
    count = accepting.accept_predictions(ref, studio, spec, certified, draw.certificate, progress)
    if kind == "annotations":
        only = [task for task, _ in certified]
        count = accepting.accept_annotations(ref, studio, only, draw.certificate, progress)
        parts.jobs.enqueue("sync", ref)  # should a webhook have got lost
    return found, count


def revert(parts: Parts, project: int, progress: Progress) -> tuple[int, int]:
    """Take back all that was ever taken over; returns how many annotations and predictions."""
    ref = parts.ref(project)
    counts = accepting.revert(ref, parts.studio, progress)
    if counts[0]:
        parts.jobs.enqueue("sync", ref)
    return counts
