"""``rush serve``, ``rush worker`` and ``rush start``: processes that run until they are told to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

import click
from rich.text import Text

from ml_backend.cli.main import console, open_container

NICE = 10
"""How far a worker steps back from those who answer people on the same machine."""


@click.command()
def serve() -> None:
    """Run the backend that Label Studio calls."""
    from ml_backend.web.server import serve as run

    run(open_container(logs=True))


@click.command()
@click.option(
    "--only",
    type=click.Choice(["fast", "slow", "simulate"]),
    help="Take the short, the long or the simulated jobs only.",
)
def worker(only: str | None) -> None:
    """Run a worker: fast jobs embed and sync, slow ones train, lay out maps and write them back."""
    os.nice(NICE)  # before anything heavy is loaded: the backend beside it is starting, too
    from ml_backend import jobs

    container = open_container(logs=True)
    _ = container.redis_url  # where there is none it says so, before anything is warmed up
    if only in ("slow", None):
        jobs.warm()
    container.work(only)


@click.command()
def start() -> None:
    """Run Redis, backend and worker together until Ctrl+C: all that one machine needs."""
    from ml_backend.bootstrap import local_rush
    from ml_backend.web.auth import require_auth_if_public

    settings = open_container(logs=True).settings
    require_auth_if_public(settings)
    with local_rush(settings, console.print) as running:
        console.print(Text.assemble("Rush answers on ", (settings.backend_url, "bold"), ". Ctrl+C stops it."))
        _wait(running.check)


def _wait(check: Callable[[], Any]) -> NoReturn:
    signal.signal(signal.SIGTERM, lambda *_: _raise_interrupt())
    while True:
        time.sleep(0.2)
        check()


def _raise_interrupt() -> NoReturn:
    raise KeyboardInterrupt
