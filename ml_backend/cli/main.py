"""``rush``: the command line."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

import strategies
from ml_backend.bootstrap import Container
from ml_backend.cli.certify import audit, certify
from ml_backend.cli.progress import show_report, show_step, stages
from ml_backend.cli.simulate import simulate
from ml_backend.domain.errors import BadRequest, RushError
from ml_backend.services.connecting.doctor import Finding
from ml_backend.settings import Settings

console = Console(stderr=True)

NICE = 10
"""How far a worker steps back from those who answer people on the same machine."""


class Group(click.Group):
    """Commands whose problems are told in one line each, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a RushError or an unusable file ends with status 1, Ctrl+C with 130."""
        try:
            return super().invoke(ctx)
        except RushError as error:
            console.print(f"[red]{error.message}[/]", highlight=False)
            if error.hint:
                console.print(error.hint, highlight=False)
            sys.exit(1)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("", "ml_backend", "strategies"):
                raise
            console.print(f"[red]{error.name} is not installed here, and this command needs it.[/]")
            console.print("pip install 'label-studio-rush\\[worker]', or run it in the worker's container.")
            sys.exit(1)
        except OSError as error:
            if error.filename is None:
                raise
            console.print(f"[red]{error.filename}: {error.strerror}.[/]", highlight=False)
            console.print(
                "RUSH_DATA_DIR must be a folder to write to, with room on its disk.", highlight=False
            )
            sys.exit(1)
        except KeyboardInterrupt:
            console.print("Stopped.")
            sys.exit(130)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="label-studio-rush")
@click.pass_context
def main(context: click.Context) -> None:
    """Rush for Label Studio: suggests labels, orders the queue, learns while you label."""
    context.obj = _container


def _container(*, logs: bool = False) -> Container:
    settings = Settings.read()
    handler: logging.Handler = RichHandler(console=console, show_path=False, rich_tracebacks=False)
    if not sys.stderr.isatty():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = settings.log_level.upper() if logs else "WARNING"
    logging.basicConfig(level=level, handlers=[handler], format="%(message)s", force=True)
    for chatty in ("httpx", "httpcore", "rq.worker", "numba"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return Container(settings)


project_option = click.option("--project", type=int, required=True, help="Id of the Label Studio project.")


@main.command()
def serve() -> None:
    """Run the backend that Label Studio calls."""
    from ml_backend.web.server import serve as run

    run(_container(logs=True).settings)


@main.command()
@click.option(
    "--only",
    type=click.Choice(["fast", "slow", "simulate"]),
    help="Take the short, the long or the simulated jobs only.",
)
def worker(only: str | None) -> None:
    """Run a worker: fast jobs embed and sync, slow ones train, lay out maps and write them back."""
    from ml_backend import jobs
    from ml_backend.adapters.redis.jobs import FAST, SIMULATED, SLOW, run_worker

    queues = {"fast": (FAST,), "slow": (SLOW,), "simulate": (SIMULATED,), None: (FAST, SLOW)}[only]
    url = _container(logs=True).redis_url
    os.nice(NICE)
    if SLOW in queues:
        jobs.warm()
    run_worker(url, queues)


@main.command()
def start() -> None:
    """Run Redis, backend and worker together until Ctrl+C: all that one machine needs."""
    from ml_backend.adapters.processes.local_rush import LocalRush
    from ml_backend.web.server import require_auth_if_public

    container = _container(logs=True)
    require_auth_if_public(container.settings)
    with LocalRush(container.settings, console.print) as running:
        console.print(f"Rush answers on [bold]{container.settings.backend_url}[/]. Ctrl+C stops it.")
        _wait(running)


def _wait(running: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, lambda *_: _raise_interrupt())
    while True:
        time.sleep(0.5)
        running.check()


def _raise_interrupt() -> NoReturn:
    raise KeyboardInterrupt


@main.command()
@click.option("--project", type=int, help="Id of an existing project.")
@click.option("--create", "title", help="Title of a project, made where there is none of that title.")
@click.option(
    "--label-config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Label config of a new or empty project; by default a choice of ten digits.",
)
def connect(project: int | None, title: str | None, label_config: Path | None) -> None:
    """Set up a project for Rush in Label Studio and prove that it works."""
    from ml_backend.operations.projects import connect as run

    if (project is None) == (title is None):
        raise BadRequest("Say which project.", "Use --project ID or --create TITLE, one of them.")
    config = None if label_config is None else label_config.read_text()
    number = run(_container(), project, title or "", config, partial(show_step, console=console))
    console.print(f"Project {number} is connected.")


@main.command(name="import")
@project_option
@click.argument("source", type=click.Path(path_type=Path, exists=True))
def import_(project: int, source: Path) -> None:
    """Import the images of a folder, a .json or a .csv file, ready to be labelled."""
    from ml_backend.operations.projects import import_images

    with stages(console) as progress:
        report = import_images(_container(), project, source, progress)
    show_report(report, console)


@main.command()
@project_option
def doctor(project: int) -> None:
    """Check a connected project from end to end and print the fix of everything that is broken."""
    from ml_backend.operations.projects import doctor as run

    findings = run(_container(), project, _show_finding)
    broken = [finding for finding in findings if finding.ok is False and not finding.warning]
    console.print(f"{len(findings)} checks, {len(broken)} broken." if broken else "All is well.")
    sys.exit(1 if broken else 0)


def _show_finding(finding: Finding) -> None:
    if finding.ok:
        console.print(f"[green]✓[/] {finding.check}", highlight=False)
        return
    mark = "[yellow]·[/]" if finding.ok is None or finding.warning else "[red]✗[/]"
    value = f" ({finding.value})" if finding.value else ""
    console.print(f"{mark} {finding.check}: {finding.problem}{value}", highlight=False)
    if finding.fix:
        console.print(f"    → {finding.fix}", highlight=False)


@main.command()
def status() -> None:
    """Show where every project of the running backend stands."""
    from ml_backend.operations.projects import status as run

    for row in run(_container()):
        console.print_json(data=row)


@main.command()
@project_option
def sync(project: int) -> None:
    """Rebuild Rush's state of a project from Label Studio."""
    from ml_backend import jobs

    container = _container(logs=True)
    with console.status("Reading the project from Label Studio …"):
        jobs.sync(container.ref(project))
    console.print(f"Project {project} is in step with Label Studio.")


@main.command()
@project_option
@click.option("--full", is_flag=True, help="Fine-tune the backbone too: minutes on a GPU, hours without.")
def train(project: int, full: bool) -> None:
    """Ask a worker to learn from all labels now."""
    container = _container()
    if full:
        container.jobs.enqueue("finetune", container.ref(project))
    else:
        container.jobs.enqueue("train", container.ref(project), force=True)
    console.print("Training is queued; rush status shows the generation it ends in.")


@main.command()
@project_option
@click.argument("name", required=False)
def strategy(project: int, name: str | None) -> None:
    """Show or switch the order of a project's queue, while people label."""
    from ml_backend.operations.projects import choose_strategy

    container = _container()
    if name is None:
        console.print(
            container.state.options(container.ref(project)).get("strategy") or container.settings.strategy
        )
        return
    choose_strategy(container, project, name)
    console.print(f"Project {project} is ordered by {name} from the next submit on.")


@main.command(name="strategies")
def list_strategies() -> None:
    """List all strategies by family: name and arguments, what it does, (the signals that it needs)."""
    for family, members in strategies.families().items():
        console.print(f"[dim]{family}[/]", highlight=False)
        for member in members:
            form = member.form if isinstance(member, strategies.Factory) else member.name
            needs = ", ".join(strategies.get(member.name).needs)
            line = f"  [bold]{escape(f'{form:28}')}[/] {escape(member.summary)}"
            console.print(line + (f" [dim]({needs})[/]" if needs else ""), highlight=False, soft_wrap=True)


@main.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="A folder of images of your own.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default=Path(".rush/demo"), show_default=True
)
@click.option("--port", type=int, default=8080, show_default=True, help="Label Studio's port.")
@click.option(
    "--attach",
    type=click.Path(path_type=Path),
    help="Start nothing: write digits to this folder, import them into LABEL_STUDIO_URL, and end.",
)
def demo(data: Path | None, folder: Path, port: int, attach: Path | None) -> None:
    """Start everything with real images and print where to label."""
    from ml_backend.operations import demo as run

    if attach is not None:
        run.attach(_container(logs=True), attach, console)
    else:
        run.demo(data, folder, console, port)


main.add_command(audit)
main.add_command(certify)
main.add_command(simulate)
