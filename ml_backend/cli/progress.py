"""What connecting and importing say in the terminal: steps, and a bar a stage with rate and time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.text import Text

from ml_backend.services.connecting.connect import Step
from ml_backend.services.datasets.importer import ImportReport, Progress

SHOWN = 20
"""Skipped files that are listed; the rest is counted."""


class Rate(ProgressColumn):
    """Things per second."""

    def render(self, task: Bar) -> Text:
        """The current rate, once there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f}/s" if speed else "", style="progress.data.speed")


@contextmanager
def stages(console: Console) -> Iterator[Progress]:
    """Draw what the importer reports."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console) as bars:
        known: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in known:
                known[stage] = bars.add_task(stage, total=total)
            bars.update(known[stage], completed=done, total=total)

        yield progress


def show_report(report: ImportReport, console: Console) -> None:
    """Say what became of the images."""
    for name, reason in report.skipped[:SHOWN]:
        console.print(f"[yellow]skipped[/] {name}: {reason}", highlight=False)
    if len(report.skipped) > SHOWN:
        console.print(f"… and {len(report.skipped) - SHOWN} more.")
    console.print(
        f"{report.imported} images imported, {report.duplicates} there already, "
        f"{len(report.skipped)} skipped, in {report.seconds:.0f} s."
    )


def show_step(step: Step, console: Console) -> None:
    """Say what one step of connecting did."""
    mark = "[yellow]·[/]" if step.outcome == "open" else "[green]✓[/]"
    console.print(f"{mark} {step.name}: {step.detail or step.outcome}", highlight=False)
