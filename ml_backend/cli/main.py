"""``rush``: the group of all commands, each loaded when it is called, and how problems are told."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from ml_backend.cli.options import PROJECT
from ml_backend.domain.errors import RushError

if TYPE_CHECKING:
    from ml_backend.bootstrap import Container

console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
"""Prints what it is given as it is: names have brackets and colons of their own. ``Text`` has colours."""

COMMANDS = {
    "audit": "certify",
    "certify": "certify",
    "connect": "projects",
    "demo": "demo",
    "doctor": "projects",
    "forget": "projects",
    "import": "projects",
    "serve": "processes",
    "simulate": "simulate",
    "start": "processes",
    "status": "projects",
    "strategies": "strategies",
    "strategy": "strategies",
    "sync": "projects",
    "train": "projects",
    "worker": "processes",
}
"""The module of this package that each command is in: what a command needs is loaded with it, not before."""


class Group(click.Group):
    """Commands whose problems are told in one line each, without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, from its module."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"ml_backend.cli.{COMMANDS[cmd_name]}")
        found = {each.name: each for each in vars(module).values() if isinstance(each, click.Command)}
        return found[cmd_name]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a RushError or an unusable file ends with status 1, Ctrl+C with 130."""
        try:
            return super().invoke(ctx)
        except RushError as error:
            told = f"{flag(error.field)} {error.message}" if error.field else error.message
            console.print(Text(told, "red"))
            if error.hint:
                console.print(error.hint)
            sys.exit(1)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("", "ml_backend", "strategies"):
                raise
            console.print(Text(f"{error.name} is not installed here, and this command needs it.", "red"))
            console.print("pip install 'label-studio-rush[worker]', or run it in the worker's container.")
            sys.exit(1)
        except OSError as error:
            if error.filename is None:
                raise
            console.print(Text(f"{error.filename}: {error.strerror}.", "red"))
            console.print("RUSH_DATA_DIR must be a folder to write to, with room on its disk.")
            sys.exit(1)
        except KeyboardInterrupt:
            console.print("Stopped.")
            sys.exit(130)


def flag(field: str) -> str:
    """The option that sets a field of an operation."""
    return "--" + field.replace("_", "-")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="label-studio-rush")
def main() -> None:
    """Rush for Label Studio: suggests labels, orders the queue, learns while you label."""


def open_container(*, logs: bool = False) -> Container:
    """The adapters by this process's settings; with ``logs`` everything from RUSH_LOG_LEVEL on is shown."""
    from rich.logging import RichHandler

    from ml_backend.bootstrap import Container
    from ml_backend.settings import Settings

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


project_option = click.option(
    "--project", type=PROJECT, required=True, help="Id of the Label Studio project."
)
