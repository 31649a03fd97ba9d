"""The frame of a certificate, frozen before anybody was asked, in the random order of its audits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.domain.model import TaskId
from strategies.audits.target import Target, Threshold

ARRAYS = ("tasks", "suggested", "confidences")


@dataclass(frozen=True, slots=True)
class AuditSample:
    """Suggestions and confidences of the surest tasks that were open at one moment, in random order.

    The first ``count`` tasks are the audits. ``planned`` is their number when it was made, which fixes the
    order of testing; more may be asked for later, the next ones in the same order. ``share`` of what people
    are served are audits, ``hidden``: without their suggestion. Target, suggestions, order and ``thresholds``
    never change: a certificate is about them, whatever the model has learnt since.
    """

    number: int
    made: str
    seed: int
    generation: int
    target: Target
    planned: int
    count: int
    share: float
    hidden: bool
    answers: tuple[tuple[str, ...], ...]
    """Every different suggestion."""
    tasks: npt.NDArray[np.int64]  # (N,)
    suggested: npt.NDArray[np.int32]  # (N,) position in ``answers``
    confidences: npt.NDArray[np.float32]  # (N,)
    thresholds: tuple[Threshold, ...] = ()
    """The sets that are tested, in order; none in samples of older versions until somebody looks at them."""

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def certificate(self) -> str:
        """A name that no other sample has, also where numbers begin anew because our files were lost."""
        return f"{self.number}.{self.seed % 16**6:06x}"

    @property
    def audits(self) -> list[TaskId]:
        """The tasks to audit, in order."""
        return [TaskId(task) for task in self.tasks[: self.count].tolist()]

    @property
    def suggestions(self) -> dict[TaskId, tuple[str, ...]]:
        """What was suggested for each task to audit."""
        said = (self.answers[number] for number in self.suggested[: self.count].tolist())
        return dict(zip(self.audits, said, strict=True))

    def facts(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON."""
        return {
            "number": self.number,
            "made": self.made,
            "seed": self.seed,
            "generation": self.generation,
            "target": [self.target.error, self.target.confidence, self.target.of],
            "planned": self.planned,
            "count": self.count,
            "share": self.share,
            "hidden": self.hidden,
            "answers": [list(labels) for labels in self.answers],
            "thresholds": [[each.confidence, each.size, each.tolerated] for each in self.thresholds],
        }

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS}

    @classmethod
    def of(cls, facts: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> AuditSample:
        """The audit sample that ``facts`` and ``arrays`` came from."""
        labels = tuple(tuple(each) for each in facts["answers"])
        rest: dict[str, Any] = {**facts, **{name: arrays[name] for name in ARRAYS}}
        sets = tuple(Threshold(*each) for each in facts.get("thresholds", ()))
        return cls(**{**rest, "target": Target(*facts["target"]), "answers": labels, "thresholds": sets})
