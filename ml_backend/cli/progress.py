"""What connecting and importing say in the terminal: steps, and a bar a stage with rate and time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.panel import Panel
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

from ml_backend.domain.shown import shown
from ml_backend.services.connecting.connect import Step
from ml_backend.services.connecting.hotkeys import KEY
from ml_backend.services.datasets.importer import ImportReport, Progress

SHOWN = 20
"""Skipped files that are listed; the rest is counted."""
LINE = 200
"""The longest line about one of them."""


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
        TextColumn("{task.description}", markup=False),
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
    """Say what became of the images: one line for each that was skipped."""
    for name, reason in report.skipped[:SHOWN]:
        reason = shown(reason, LINE - 60)
        console.print(Text("skipped", "yellow"), f"{shown(name, LINE - 12 - len(reason))}: {reason}")
    if len(report.skipped) > SHOWN:
        console.print(f"… and {len(report.skipped) - SHOWN} more.")
    for note in report.notes[:SHOWN]:
        console.print(Text("note", "yellow"), shown(note, LINE))
    if len(report.notes) > SHOWN:
        console.print(f"… and {len(report.notes) - SHOWN} more notes.")
    console.print(
        f"{report.imported} images imported, {report.duplicates} there already, "
        f"{len(report.skipped)} skipped, in {report.seconds:.0f} s."
    )


def show_step(step: Step, console: Console) -> None:
    """Say what one step of connecting did."""
    mark = Text("·", "yellow") if step.outcome == "open" else Text("✓", "green")
    console.print(mark, f"{step.name}: {step.detail or step.outcome}")


class ConsoleNarrator:
    """``operations.narrator.Narrator`` on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, line: str) -> None:
        """Print a line as it is."""
        self._console.print(line)

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """A spinner."""
        return self._console.status(Text(what))

    def stages(self) -> AbstractContextManager[Progress]:
        """A bar for each stage."""
        return stages(self._console)

    def step(self, step: Step) -> None:
        """Print what a step of connecting did."""
        show_step(step, self._console)

    def imported(self, report: ImportReport) -> None:
        """Print what became of the images."""
        show_report(report, self._console)

    def ready(self, address: str, user: str, password: str) -> None:
        """Print the invitation to label."""
        key = (KEY, "bold")
        lines = Text.assemble(
            (address, "bold"),
            f"\nLog in as {user} with password {password}, then press ",
            ("Label All Tasks", "bold"),
            "\n\n",
            key,
            " accepts the suggestion · a digit key corrects it, then ",
            key,
            " submits\nAfter the first few answers suggestions appear; the queue follows what you label.",
            "\nCtrl+C here stops everything and keeps your labels.",
        )
        self._console.print(Panel(lines, title="Ready to label", expand=False))
