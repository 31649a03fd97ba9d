"""Find every way in which a connected project can be broken, and print the exact fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ml_backend.domain.errors import RushError
from ml_backend.domain.model import ProjectRef
from ml_backend.ports import LabelStudio, State
from ml_backend.services.connecting.doctor import access, backend, images, project, queue, store, webhook
from ml_backend.services.connecting.doctor.context import CannotCheckError, Check, CheckContext, Note
from ml_backend.settings import Settings

__all__ = ["CHECKS", "Finding", "doctor"]

FIRST: tuple[tuple[str, Check], ...] = (
    ("token", access.token),
    ("project", access.project),
)
"""Where one of these fails, the rest can't be checked."""

CHECKS: tuple[tuple[str, Check], ...] = (
    *FIRST,
    ("Label Studio version", access.version),
    ("label config", project.label_config),
    ("answers' classes", project.lost_classes),
    ("sampling", project.sampling),
    ("annotations per task", project.maximum_annotations),
    ("shown predictions", project.shown_predictions),
    ("model version", project.model_version),
    ("backend", backend.answers),
    ("ML_BLOCK_LOCAL_IP", backend.private_backend),
    ("SSRF_PROTECTION_ENABLED", backend.private_webhook),
    ("ML backend", backend.row),
    ("ML backend state", backend.reached),
    ("project state", backend.known),
    ("Redis", store.memory),
    ("workers", backend.workers),
    ("jobs given up", backend.given_up),
    ("webhook", webhook.row),
    ("webhook event", webhook.event),
    ("queue", queue.window),
    ("queue in step", queue.in_step),
    ("predictions per task", queue.single_rows),
    ("prediction scores", queue.scores),
    ("prediction clusters", queue.clusters),
    ("bulk requests", queue.recount),
    ("images", images.readable),
    ("unread images", images.unread),
    ("images in the browser", images.cors),
    ("accept key", queue.accept_key),
    ("next task", queue.next_task),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: ``ok`` is None where it could not run, and ``problem`` says why.

    A ``warning`` works, but not as well as it should.
    """

    check: str
    ok: bool | None
    problem: str = ""
    value: str = ""
    fix: str = ""
    warning: bool = False


Progress = Callable[[Finding], None]


def doctor(
    ref: ProjectRef,
    studio: LabelStudio,
    state: State,
    settings: Settings,
    *,
    workers: Callable[[], str] | None = None,
    ask: bool = True,
    progress: Progress = lambda finding: None,
) -> list[Finding]:
    """Run every check; one finding for each that passes, one or more for each that doesn't.

    ``workers`` returns what is wrong with the background workers, "" where nothing is. ``ask=False`` leaves
    out asking for the next task.
    """
    context = CheckContext(ref, studio, state, settings, workers, ask)
    findings: list[Finding] = []
    stopped = ""
    for name, check in CHECKS:
        if stopped:
            found = [Finding(name, None, f"not checked: {stopped} comes first")]
        else:
            found = list(_run(name, check, context))
        for finding in found:
            findings.append(finding)
            progress(finding)
        if (name, check) in FIRST and any(finding.ok is not True for finding in found):
            stopped = name
    return findings


def _run(name: str, check: Check, context: CheckContext) -> Iterator[Finding]:
    found = False
    try:
        for fault in check(context):
            found = True
            if isinstance(fault, Note):
                yield Finding(name, True, value=fault.value)
                continue
            yield Finding(name, False, fault.problem, fault.value, fault.fix, fault.warning)
    except CannotCheckError as reason:
        yield Finding(name, None, f"not checked: {reason}")
    except RushError as error:
        yield Finding(name, False, error.message, fix=error.hint)
    else:
        if not found:
            yield Finding(name, True)
