"""What ``rush audit`` and ``rush certify`` do: services put together with this machine's parts."""

from __future__ import annotations

from dataclasses import replace

from ml_backend.bootstrap import Container
from ml_backend.controls import Control, control_of
from ml_backend.domain.audit_sample import AuditSample
from ml_backend.domain.errors import NotReady
from ml_backend.domain.labels import resolve_labels
from ml_backend.domain.model import Annotation, LabelState, TaskId
from ml_backend.operations.existing import existing
from ml_backend.services.certification import accept as accepting
from ml_backend.services.certification import audit_sample as auditing
from ml_backend.services.certification.accept import Progress, Reverted, Written
from ml_backend.services.certification.certificate import CertificationStatus, certification_status
from strategies.audits.target import Target


def draw_audit_sample(
    container: Container,
    project: int,
    target: Target,
    *,
    count: int | None = None,
    surest: float | None = None,
    share: float = auditing.SHARE,
    hidden: bool = False,
    of_all: bool = False,
    again: bool = False,
) -> AuditSample:
    """Draw audits from the open images and mix them into the queue."""
    ref = existing(container, project)
    return auditing.draw_sample(
        ref,
        container.state,
        container.artifacts,
        container.features(container.feature_set(ref)),
        target,
        count=count,
        surest=surest,
        share=share,
        hidden=hidden,
        of_all=of_all,
        again=again,
    )


def more_audits(container: Container, project: int, more: int) -> AuditSample:
    """Ask for the next audits of the current audit sample."""
    return auditing.ask_more(existing(container, project), container.state, container.artifacts, more)


def resume(container: Container, project: int, number: int) -> AuditSample:
    """Go on with an audit sample that was set aside."""
    return auditing.resume(existing(container, project), container.state, container.artifacts, number)


def current_sample(container: Container, project: int) -> AuditSample | None:
    """The audit sample that certificates are about, if there is one."""
    return auditing.current_sample(existing(container, project), container.artifacts)


def answered(container: Container, project: int, sample: AuditSample) -> int:
    """How many audits of the sample people have answered or skipped."""
    return auditing.answered(container.ref(project), container.state, sample)


def open_images(container: Container, project: int) -> int:
    """How many tasks nobody has answered."""
    ref = container.ref(project)
    answered = {
        task
        for task, (state, _) in resolve_labels(container.state.annotations(ref)).items()
        if state is not LabelState.OPEN
    }
    return len(container.state.tasks(ref).keys() - answered)


def look(
    container: Container, project: int, sample: AuditSample, human_error: float = 0.0
) -> CertificationStatus:
    """Where the audit sample stands by what Rush knows."""
    ref = container.ref(project)
    sample = _by_present_names(sample, control_of(container.state.options(ref)))
    return certification_status(
        sample, container.state.tasks(ref), container.state.annotations(ref), human_error
    )


def _by_present_names(sample: AuditSample, control: Control) -> AuditSample:
    """The same suggestions under the names that people's answers have by now: classes may be renamed."""
    return replace(sample, answers=tuple(control.current(labels) for labels in sample.answers))


def accept(
    container: Container, project: int, sample: AuditSample, kind: str, progress: Progress
) -> tuple[CertificationStatus, Written]:
    """Take the certified rest over as ``predictions`` or ``annotations``; returns what came in.

    Label Studio is read anew and decides. NotReady where nothing is certified.
    """
    ref, studio = existing(container, project), container.studio
    config = str(studio.project(project).get("label_config", ""))
    control = control_of(container.state.options(ref), config)
    sample = _by_present_names(sample, control)
    total = len(container.state.tasks(ref))
    tasks: list[TaskId] = []
    annotations: list[Annotation] = []
    for record in studio.records(project, control):
        tasks.append(record.task.id)
        annotations += record.annotations
        progress("reading", len(tasks), max(total, len(tasks)))
    found = certification_status(sample, tasks, annotations)
    if found.accepted is None or not len(found.rest):
        raise NotReady(
            "Nothing can be taken over now.", f"What is lacking says: rush certify --project {project}"
        )
    certified = [found.suggestion(int(position)) for position in found.rest]
    written = accepting.accept_predictions(ref, studio, control, certified, sample.certificate, progress)
    if kind == "annotations":
        lost = written.missing
        only = [task for task, _ in certified if task not in lost]
        made = accepting.accept_annotations(ref, studio, only, sample.certificate, progress)
        written = replace(made, missing={**lost, **made.missing})
        container.jobs.enqueue("sync", ref)  # should a webhook have got lost
    return found, written


def revert(container: Container, project: int, progress: Progress) -> Reverted:
    """Take back all that was ever taken over; returns what was deleted and what would not go."""
    ref = existing(container, project)
    reverted = accepting.revert(ref, container.studio, progress)
    if reverted.annotations:
        container.jobs.enqueue("sync", ref)
    return reverted
