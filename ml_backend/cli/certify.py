"""``rush audit`` and ``rush certify``: the machine labels what a random audit proves it good enough for."""

from __future__ import annotations

import click

from ml_backend.cli.main import console, open_container, project_option
from ml_backend.domain.errors import BadRequest


@click.command()
@project_option
@click.option("--error", default=0.01, show_default=True, help="Share of suggestions that may be wrong.")
@click.option("--of-all", is_flag=True, help="--error is a share of all labels; people label the rest.")
@click.option("--confidence", default=0.95, show_default=True, help="How sure that is to be.")
@click.option("--count", type=int, help="Number of audits; by default as many as it will probably take.")
@click.option("--surest", type=float, help="Share of the open images to draw from, the surest ones first.")
@click.option("--share", default=0.5, show_default=True, help="Share of what people see that are audits.")
@click.option("--hide-suggestions", is_flag=True, help="Show audits without a suggestion, which may sway.")
@click.option("--more", type=int, help="Ask for this many more audits of the current audit sample instead.")
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
) -> None:
    """Draw a random audit sample and mix it into the queue; the current suggestions are frozen."""
    from ml_backend.cli.certificate_text import show_sample, target_of
    from ml_backend.operations import certification as run

    container = open_container()
    with console.status("Noting what the model says of every open image …"):
        if more is not None:
            sample = run.more_audits(container, project, more)
        else:
            sample = run.draw_audit_sample(
                container,
                project,
                target_of(error, confidence),
                count=count,
                surest=surest,
                share=share,
                hidden=hide_suggestions,
                of_all=of_all,
            )
    show_sample(sample, project, console)


@click.command()
@project_option
@click.option("--error", type=float, help="Share of suggestions that may be wrong, as drawn for.")
@click.option("--confidence", type=float, help="How sure that is to be, as drawn for.")
@click.option("--human-error", default=0.0, help="Share of people's labels that are wrong, where known.")
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
    from ml_backend.cli.certificate_text import check_target, show_need, show_status, target_of
    from ml_backend.cli.progress import stages
    from ml_backend.operations import certification as run

    container = open_container()
    if take and back:
        raise BadRequest("--accept and --revert contradict each other.", "Give one of them.")
    if back:
        with stages(console) as progress:
            annotations, predictions = run.revert(container, project, progress)
        console.print(f"{annotations} annotations and {predictions} predictions were taken back.")
        return
    sample = run.current_sample(container, project)
    if sample is None:
        target = target_of(error or 0.01, confidence or 0.95)
        show_need(project, run.open_images(container, project), target, console)
        return
    check_target(sample, error, confidence)
    if not take:
        show_status(run.look(container, project, sample, human_error), project, human_error, console)
        return
    with stages(console) as progress:
        found, count = run.accept(container, project, sample, kind, progress)
    console.print(f"{count} of {len(found.rest)} certified images were written as {kind}.", highlight=False)
