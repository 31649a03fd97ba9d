"""How a long operation tells a person what it is doing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from ml_backend.services.connecting.connect import Step
from ml_backend.services.datasets.importer import ImportReport, Progress


class Narrator(Protocol):
    """What operations say while they run; the command line prints it."""

    def say(self, line: str) -> None:
        """One line."""

    def waiting(self, what: str) -> AbstractContextManager[object]:
        """Something of unknown length is under way inside of the block."""

    def stages(self) -> AbstractContextManager[Progress]:
        """Gives what hears how far each stage is."""

    def step(self, step: Step) -> None:
        """A step of connecting is done."""

    def imported(self, report: ImportReport) -> None:
        """What became of the images."""

    def ready(self, address: str, user: str, password: str) -> None:
        """Everything runs; where to label, and as whom."""
