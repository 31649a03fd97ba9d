"""``rush demo``."""

from __future__ import annotations

from pathlib import Path

import click

from ml_backend.cli.main import console, open_container
from ml_backend.cli.options import PORT


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="A folder of images of your own.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default=Path(".rush/demo"), show_default=True
)
@click.option("--port", type=PORT, default=8080, show_default=True, help="Label Studio's port.")
@click.option(
    "--attach",
    type=click.Path(path_type=Path),
    help="Start nothing: write digits to this folder, import them into LABEL_STUDIO_URL, and end.",
)
def demo(data: Path | None, folder: Path, port: int, attach: Path | None) -> None:
    """Start everything with real images and print where to label."""
    from ml_backend.cli.progress import ConsoleNarrator
    from ml_backend.operations import demo as run

    if attach is not None:
        run.attach(open_container(logs=True), attach, ConsoleNarrator(console))
    else:
        run.demo(data, folder, ConsoleNarrator(console), port)
