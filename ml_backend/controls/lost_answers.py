"""Answers under names that the label config no longer has: they teach nothing until a person renames them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ml_backend.controls.choices import Choices
from ml_backend.domain.labels import resolve_labels
from ml_backend.domain.model import Annotation, LabelState

SHOWN = 10
"""Names that are told; the rest is counted."""


@dataclass(frozen=True, slots=True)
class LostAnswers:
    """How many tasks have such an answer, and how many of each name."""

    count: int = 0
    names: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        said = "1 answer has" if self.count == 1 else f"{self.count} answers have"
        shown = [f"{name} ({number})" for name, number in list(self.names.items())[:SHOWN]]
        rest = len(self.names) - len(shown)
        named = ", ".join(shown) + (f" and {rest} more" if rest else "")
        return f"{said} a class that the label config no longer has: {named}"


def lost_answers(control: Choices, annotations: Iterable[Annotation]) -> LostAnswers:
    """Of the answers that count, those with a name that is no class; the most frequent name first."""
    count, names = 0, Counter[str]()
    for state, labels in resolve_labels(annotations).values():
        if state is LabelState.LABELLED and (lost := control.lost(labels)):
            count += 1
            names.update(lost)
    return LostAnswers(count, dict(names.most_common()))
