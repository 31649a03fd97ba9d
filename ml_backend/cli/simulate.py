"""``rush simulate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ml_backend.cli.main import console, open_container
from ml_backend.cli.options import COUNT, PROJECT, SECONDS, SHARE
from ml_backend.domain.errors import BadRequest, NotReady

if TYPE_CHECKING:
    from ml_backend.bootstrap import Container

NAMED = 10
"""Images left out that are named one by one; the report has all of them."""


def _cost_or_refuse(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    kind, _, number = (value or "published").partition(":")
    if value in (None, "published") or (kind == "project" and number.isdigit()):
        return value
    try:
        SECONDS.convert(value, option, context)
    except click.BadParameter:
        raise BadRequest(
            f"--cost {value} is no cost.", "Use published, a number of seconds, or project:ID."
        ) from None
    return value


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="An .npz of images (or features) and labels, a folder with one sub-folder per class, or an export "
    "of Label Studio (.json); repeatable.",
)
@click.option(
    "--project", type=PROJECT, help="A live project's labels: would another order have been faster?"
)
@click.option("--strategy", default="rush", show_default=True, help="Names, comma separated.")
@click.option("--labels", type=COUNT, default=300, show_default=True, help="Answers per run.")
@click.option("--seeds", type=COUNT, default=3, show_default=True, help="Runs per strategy.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("simulation"), show_default=True)
@click.option("--processes", type=COUNT, default=os.cpu_count() or 1, show_default=True)
@click.option("--redis", "redis_url", help="Run on the workers of this Redis: rush worker --only simulate.")
@click.option(
    "--cost",
    callback=_cost_or_refuse,
    help="What an answer costs: published (0.6 s same class, 2.5 s otherwise), seconds, or project:ID. "
    "Default: learnt from --project where it has enough timed answers, else published.",
)
@click.option("--page-seconds", type=SECONDS, help="Of Label Studio's page, for each answer.")
@click.option("--people", type=COUNT, default=1, show_default=True, help="Annotators in turn.")
@click.option("--error", type=SHARE, default=0.0, show_default=True, help="Wrong answers.")
@click.option("--dont-know", type=SHARE, default=0.0, show_default=True, help="Skips.")
@click.option("--until", type=SHARE, default=1.0, help="End where this share is right.")
@click.option("--train-labels", type=COUNT, default=20, show_default=True)
def simulate(
    data: tuple[Path, ...],
    project: int | None,
    strategy: str,
    seeds: int,
    out: Path,
    processes: int,
    redis_url: str | None,
    cost: str | None,
    **options: Any,
) -> None:
    """Replay labelling with simulated annotators: which query strategy is fastest on such data?"""
    from ml_backend.bootstrap import runs_on_workers
    from ml_backend.cli.progress import stages
    from ml_backend.domain.model import Annotation
    from ml_backend.domain.simulated_run import Options
    from ml_backend.operations.existing import existing
    from ml_backend.services.queue.pace import own_minutes
    from ml_backend.simulation import data as preparing
    from ml_backend.simulation import runner as simulating
    from strategies.cost import PAGE_SECONDS
    from strategies.spec_parser import parse

    if not data and project is None:
        raise BadRequest("There is nothing to simulate on.", "Give --data PATH or --project ID.")
    if options["page_seconds"] is None:
        options["page_seconds"] = PAGE_SECONDS
    names = parse(f"all({strategy})")[1]  # commas inside brackets separate no names
    container = open_container()
    if project is not None:
        existing(container, project)
    out.mkdir(parents=True, exist_ok=True)
    with stages(console) as progress:
        sets = [preparing.prepare(path, out, container, progress) for path in data]
        annotations: list[Annotation] = []
        if project is not None:
            prepared, annotations = preparing.of_project(project, out, container)
            sets.append(prepared)
        left_out = [line for prepared in sets for line in prepared.left_out]
        given = Options(**options, cost=_cost(cost, project, container))
        runner = runs_on_workers(redis_url) if redis_url else simulating.on_processes(processes)
        paths = [prepared.path for prepared in sets]
        runs = simulating.simulate(paths, names, seeds, given, out, runner, progress)
    click.echo(simulating.write_report(runs, out, left_out))
    if own := own_minutes(annotations, given.page_seconds, given.labels):
        console.print(f"Project {project}'s own order: {own[0]} timed answers took {own[1]:.1f} minutes.")
        for name, minutes in simulating.minutes_for(runs, paths[-1].stem, own[0]).items():
            console.print(f"Simulated for as many answers, {name}: {minutes:.1f} minutes.", highlight=False)
    for line in left_out[:NAMED]:
        console.print(f"Left out: {line}", highlight=False)
    if left_out:
        console.print(f"{len(left_out)} images were left out: {out / 'left_out.txt'}.", highlight=False)
    console.print(f"Written to {out}: runs.json, summary.csv, summary.md and pictures.")


def _cost(given: str | None, project: int | None, container: Container) -> str:
    """The value of ``Options.cost``; says what it is where nobody chose it."""
    from ml_backend.operations.existing import existing
    from ml_backend.simulation.data import fitted_cost
    from ml_backend.simulation.runner import fitted

    if given is None and project is not None:
        try:
            return _cost(f"project:{project}", project, container)
        except NotReady as error:
            console.print(f"{error.message} The published cost is used.", highlight=False)
    given = given or "published"
    kind, _, number = given.partition(":")
    if kind == "project":
        existing(container, int(number))
        answers = fitted_cost(int(number), container)
        if known := fitted(answers).calibration:
            console.print(
                f"Cost learnt from {known.answers} answers ({known.idle} pauses left out): "
                f"{known.absolute_error:.2f} s mean error, {known.coverage:.0%} inside the 80 % interval."
            )
        return answers
    return given
