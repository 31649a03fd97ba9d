"""``rush audit`` and ``rush certify``: the machine labels what a random audit proves it good enough for."""

from __future__ import annotations

import sys

import click

from ml_backend.cli.main import console, open_container, project_option
from ml_backend.cli.options import COUNT, NOT_ALL, PROPER, SOME
from ml_backend.domain.errors import BadRequest


@click.command()
@project_option
@click.option(
    "--error", type=PROPER, default=0.01, show_default=True, help="Share of suggestions that may be wrong."
)
@click.option("--of-all", is_flag=True, help="--error is a share of all labels; people label the rest.")
@click.option("--confidence", type=PROPER, default=0.95, show_default=True, help="How sure that is to be.")
@click.option("--count", type=COUNT, help="Number of audits; by default as many as it will probably take.")
@click.option("--surest", type=SOME, help="Share of the open images to draw from, the surest ones first.")
@click.option(
    "--share", type=SOME, default=0.5, show_default=True, help="Share of what people see that are audits."
)
@click.option("--hide-suggestions", is_flag=True, help="Show audits without a suggestion, which may sway.")
@click.option("--more", type=COUNT, help="Ask for this many more audits of the current audit sample instead.")
@click.option("--again", is_flag=True, help="Draw a new audit sample though the current one has answers.")
@click.option("--resume", type=COUNT, help="Go on with the audit sample of this number instead.")
def audit(
    project: int,
    error: float,
    of_all: bool,
    confidence: float,
    count: int | None,
    surest: float | None,
    share: float,
    hide_suggestions: bool,
    more: int | None,
    again: bool,
    resume: int | None,
) -> None:
    """Draw a random audit sample and mix it into the queue; the current suggestions are frozen."""
    from ml_backend.cli.certificate_text import show_sample, show_set_aside
    from ml_backend.operations import certification as run
    from strategies.audits.target import Target

    if sum((more is not None, again, resume is not None)) > 1:
        raise BadRequest("--more, --again and --resume contradict each other.", "Give one of them.")
    container = open_container()
    before = run.current_sample(container, project)
    with console.status("Noting what the model says of every open image …"):
        if more is not None:
            sample = run.more_audits(container, project, more)
        elif resume is not None:
            sample = run.resume(container, project, resume)
        else:
            sample = run.draw_audit_sample(
                container,
                project,
                Target(error, confidence),
                count=count,
                surest=surest,
                share=share,
                hidden=hide_suggestions,
                of_all=of_all,
                again=again,
            )
    show_sample(sample, project, console)
    if before is not None and before.number != sample.number:
        show_set_aside(before, run.answered(container, project, before), project, console)


@click.command()
@project_option
@click.option("--error", type=PROPER, help="Share of suggestions that may be wrong, as drawn for.")
@click.option("--confidence", type=PROPER, help="How sure that is to be, as drawn for.")
@click.option(
    "--human-error",
    type=NOT_ALL,
    default=0.0,
    help="Share of people's labels that are wrong, where known.",
)
@click.option("--accept", "take", is_flag=True, help="Write what is certified into Label Studio.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["predictions", "annotations"]),
    default="predictions",
    show_default=True,
)
@click.option("--revert", "back", is_flag=True, help="Delete all that --accept ever wrote.")
def certify(
    project: int,
    error: float | None,
    confidence: float | None,
    human_error: float,
    take: bool,
    kind: str,
    back: bool,
) -> None:
    """Show how many images the model may label within the error bound, and write these labels."""
    from ml_backend.cli.certificate_text import (
        check_target,
        show_need,
        show_reverted,
        show_status,
        show_written,
    )
    from ml_backend.cli.progress import stages
    from ml_backend.operations import certification as run
    from strategies.audits.target import Target

    container = open_container()
    if take and back:
        raise BadRequest("--accept and --revert contradict each other.", "Give one of them.")
    if back:
        with stages(console) as progress:
            reverted = run.revert(container, project, progress)
        show_reverted(reverted, console)
        sys.exit(1 if reverted.kept else 0)
    sample = run.current_sample(container, project)
    if sample is None:
        target = Target(error or 0.01, confidence or 0.95)
        show_need(project, run.open_images(container, project), target, console)
        return
    check_target(sample, error, confidence)
    if not take:
        show_status(run.look(container, project, sample, human_error), project, human_error, console)
        return
    with stages(console) as progress:
        found, written = run.accept(container, project, sample, kind, progress)
    show_written(written, len(found.rest), kind, console)
    sys.exit(1 if written.missing else 0)
