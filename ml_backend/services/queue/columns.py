"""Which classes have a column in a pool's arrays: of a config of thousands only those that matter by now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

WHOLE = 128
"""A config of up to this many classes has a column for each, in its order."""


class Columns:
    """Class → column, growing: of a larger config only what was learnt or ever chosen has one.

    So memory follows what people use and not what the config could offer.
    """

    def __init__(self, classes: Sequence[str], learnt: Iterable[str] = ()) -> None:
        self._classes = frozenset(classes)
        self.names: list[str] = []
        self.number: dict[str, int] = {}
        self.know(classes if len(classes) <= WHOLE else learnt)

    def __len__(self) -> int:
        return len(self.names)

    def know(self, labels: Iterable[str]) -> bool:
        """Give a column to those of the labels that are classes; whether any was new."""
        before = len(self.names)
        for label in labels:
            if label in self._classes and label not in self.number:
                self.number[label] = len(self.names)
                self.names.append(label)
        return len(self.names) > before
