"""The words of a simulation: what a run is, and who does runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from strategies.cost import PAGE_SECONDS


@dataclass(frozen=True, slots=True)
class Options:
    """Everything of a run but its data, strategy and seed.

    ``cost`` of an answer: ``published``, a number of seconds, or the answers that it is learnt from
    (``simulate.cost_of``) · ``error``: share of wrong answers · ``rank_every``
    answers the order is computed anew · ``until``: share of the pool right at which a run ends.
    """

    labels: int = 300
    held_out: float = 0.2
    every: int = 20
    train_labels: int = 20
    rank_every: int = 4
    cost: str = "published"
    page_seconds: float = PAGE_SECONDS
    people: int = 1
    error: float = 0.0
    dont_know: float = 0.0
    until: float = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """One strategy on one data set with one seed."""

    data: Path
    strategy: str
    seed: int
    options: Options

    @property
    def name(self) -> str:
        """A file name that no other run has; another data file of the same place and time is another run."""
        stat, facts = self.data.stat(), asdict(self.options)
        text = json.dumps([str(self.data.resolve()), stat.st_mtime_ns, self.strategy, self.seed, facts])
        label = "".join(c if c.isalnum() else "-" for c in self.strategy)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.data.stem}-{label}-{self.seed}-{digest}"


Runner = Callable[[Sequence[Run]], Iterable[tuple[Run, dict[str, Any]]]]
"""Does runs and gives each with its result as it is done."""
