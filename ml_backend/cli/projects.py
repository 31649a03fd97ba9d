"""Commands about one project: connect, import, doctor, sync, train; and the status of all of them."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from ml_backend.cli.main import console, open_container, project_option
from ml_backend.cli.options import PROJECT
from ml_backend.domain.errors import BadRequest
from ml_backend.domain.shown import shown

if TYPE_CHECKING:
    from ml_backend.services.connecting.doctor import Finding


@click.command()
@click.option("--project", type=PROJECT, help="Id of an existing project.")
@click.option("--create", "title", help="Title of a project, made where there is none of that title.")
@click.option(
    "--label-config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Label config of a new or empty project; by default a choice of ten digits.",
)
@click.option("--control", help="Control to predict; '' for the first that is asked of every image.")
@click.option(
    "--rename",
    "renames",
    multiple=True,
    metavar="OLD=NEW",
    help="A class that was renamed in Label Studio: old answers count as NEW. OLD= takes it back.",
)
def connect(
    project: int | None,
    title: str | None,
    label_config: Path | None,
    control: str | None,
    renames: tuple[str, ...],
) -> None:
    """Set up a project for Rush in Label Studio and prove that it works."""
    from ml_backend.cli.progress import show_step
    from ml_backend.operations.projects import connect as run

    if (project is None) == (title is None):
        raise BadRequest("Say which project.", "Use --project ID or --create TITLE, one of them.")
    try:
        config = None if label_config is None else label_config.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadRequest(f"{label_config} is no text in UTF-8.", "Save it as such.") from None
    show = partial(show_step, console=console)
    number = run(open_container(), project, title or "", config, show, control=control, renames=renames)
    console.print(f"Project {number} is connected.")


@click.command(name="import")
@project_option
@click.argument("source", type=click.Path(path_type=Path, exists=True))
def import_(project: int, source: Path) -> None:
    """Import the images of a folder, a .json or a .csv file, ready to be labelled."""
    from ml_backend.cli.progress import show_report, stages
    from ml_backend.operations.projects import import_images

    with stages(console) as progress:
        report = import_images(open_container(), project, source, progress)
    show_report(report, console)


@click.command()
@project_option
def doctor(project: int) -> None:
    """Check a connected project from end to end and print the fix of everything that is broken."""
    from ml_backend.operations.projects import doctor as run

    findings = run(open_container(), project, _show_finding)
    broken = [finding for finding in findings if finding.ok is False and not finding.warning]
    console.print(f"{len(findings)} checks, {len(broken)} broken." if broken else "All is well.")
    sys.exit(1 if broken else 0)


def _show_finding(finding: Finding) -> None:
    if finding.ok:
        said = f": {shown(finding.value)}" if finding.value else ""
        console.print(Text("✓", "green"), f"{finding.check}{said}")
        return
    mark = Text("·", "yellow") if finding.ok is None or finding.warning else Text("✗", "red")
    value = f" ({shown(finding.value)})" if finding.value else ""
    console.print(mark, f"{finding.check}: {finding.problem}{value}")
    if finding.fix:
        console.print(f"    → {finding.fix}")


@click.command()
def status() -> None:
    """Show where every project of the running backend stands."""
    for row in open_container().backend_status():
        console.print_json(data=row)


@click.command()
@project_option
def sync(project: int) -> None:
    """Rebuild Rush's state of a project from Label Studio."""
    from ml_backend.operations.projects import sync as run

    container = open_container(logs=True)
    with console.status("Reading the project from Label Studio …"):
        run(container, project)
    console.print(f"Project {project} is in step with Label Studio.")


@click.command()
@project_option
@click.option("--full", is_flag=True, help="Fine-tune the backbone too: minutes on a GPU, hours without.")
def train(project: int, full: bool) -> None:
    """Ask a worker to learn from all labels now."""
    from ml_backend.operations.projects import train as run

    missing = run(open_container(), project, full=full)
    console.print("Training is queued; rush status shows the generation it ends in.")
    if missing:
        console.print(Text(f"But {missing}: start one with rush worker.", "yellow"))


@click.command()
@project_option
@click.option("--yes", is_flag=True, help="Don't ask, and don't mind if Label Studio still has the project.")
def forget(project: int, yes: bool) -> None:
    """Delete what Rush keeps of a project that was deleted in Label Studio."""
    from ml_backend.operations.forget import forget as run
    from ml_backend.operations.forget import kept

    container = open_container()
    found = kept(container, project, sure=yes)
    sample = ", its audit sample" if found.audit_sample else ""
    what = (
        f"what Rush knows of {found.tasks} tasks of project {project}, its generations{sample} and its index"
    )
    if not yes and not click.confirm(f"Delete {what}?"):
        console.print("Nothing is deleted.")
        return
    pruned = run(container, project)
    more = f" Nobody needs any longer, and gone too: {', '.join(pruned)}." if pruned else ""
    console.print(f"Deleted: {what}.{more}", highlight=False, markup=False)
