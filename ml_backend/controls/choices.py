"""Choices: one class of a whole image, or several; and how answers become numbers."""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.domain.image_key import is_key
from ml_backend.domain.label_config import Surroundings, is_on, outermost
from ml_backend.domain.model import Suggestion, text_of

Array = npt.NDArray[Any]
ALTERNATIVES = 5
"""Ranked classes that a prediction carries beside the one suggested."""


@dataclass(frozen=True)
class Choices:
    """A Choices control on an Image: what its answers may be, and how they are read, written and compared."""

    from_name: str
    to_name: str
    image_key: str
    classes: tuple[str, ...]
    multiple: bool = False
    image_list: bool = False
    """The image's value is a list (valueList), of which the first is what is seen."""
    renames: tuple[tuple[str, str], ...] = ()
    """Classes that are called otherwise by now: (name in old answers, what it became)."""
    others: tuple[str, ...] = field(default=(), compare=False)
    """The names of the label config's other controls, which are left alone."""

    # ---- in Label Studio's results

    def read(self, result: Iterable[Mapping[str, Any]] | None) -> tuple[str, ...]:
        """The labels that a result holds of this control, by their present names, each once."""
        found: list[str] = []
        for region in result or ():
            if not isinstance(region, Mapping) or region.get("type") != "choices":
                continue
            if region.get("from_name") != self.from_name:
                continue
            value = region.get("value")
            picked = value.get("choices") if isinstance(value, Mapping) else None
            for each in picked if isinstance(picked, list) else ():
                # Until allowNested was switched off again, a label was a path of one.
                name = each[0] if isinstance(each, list) and len(each) == 1 else each
                if text := text_of(name):
                    found.append(text)
        return self.current(found)

    def current(self, labels: Iterable[str]) -> tuple[str, ...]:
        """These labels by their present names, each once; a name that became none of the classes stays."""
        return tuple(dict.fromkeys(self._present.get(label, label) for label in labels))

    def lost(self, labels: Iterable[str]) -> tuple[str, ...]:
        """Those of the labels that are no class of the label config (any more)."""
        return tuple(label for label in self.current(labels) if label not in self.columns)

    def teaches(self, labels: Iterable[str]) -> bool:
        """Whether something can be learnt from an answer: its names are classes, and one if one is asked."""
        present = self.current(labels)
        return not self.lost(present) and (self.multiple or len(present) == 1)

    def renamed(self, became: Mapping[str, str]) -> Choices:
        """The same control with these renames, old name → new one."""
        return replace(self, renames=tuple(sorted(became.items())))

    @cached_property
    def _present(self) -> dict[str, str]:
        """Old name → class, where the renames lead to one; what is a class by now keeps its name."""
        became, found = dict(self.renames), {}
        for old in became:
            name, seen = old, set[str]()
            while name not in self.columns and name in became and name not in seen:
                seen.add(name)
                name = became[name]
            if name in self.columns and old not in self.columns:
                found[old] = name
        return found

    @cached_property
    def question(self) -> str:
        """What is equal for two configs that ask the same: a head for one of them serves the other, too."""
        asked = json.dumps([self.from_name, self.multiple, self.classes, self.renames])
        return hashlib.blake2b(asked.encode(), digest_size=8).hexdigest()

    @property
    def reading(self) -> str:
        """What is equal for two controls that read the same labels from a result."""
        return json.dumps([self.from_name, *self.renames])

    def write(self, suggestion: Suggestion) -> list[dict[str, Any]]:
        """A suggestion as a result: preselected labels, confidence and ranked alternatives.

        Nothing suggested gives an empty list, which preselects nothing.
        """
        if not suggestion.labels:
            return []
        ranked = suggestion.ranked[:ALTERNATIVES]
        return [
            {
                "from_name": self.from_name,
                "to_name": self.to_name,
                "type": "choices",
                "score": round(suggestion.confidence, 4),
                "value": {"choices": list(suggestion.labels)},
                "alternatives": [
                    {"choice": label, "score": round(float(chance), 4)} for label, chance in ranked
                ],
            }
        ]

    @staticmethod
    def agrees(suggested: Sequence[str], answered: Sequence[str]) -> bool:
        """Whether an answer says what was suggested."""
        return set(suggested) == set(answered)

    # ---- as numbers: a class, or 0/1 per class

    @cached_property
    def columns(self) -> dict[str, int]:
        """Class → its number."""
        return {label: number for number, label in enumerate(self.classes)}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one target: () for a class, (C,) where several may be right."""
        return (len(self.classes),) if self.multiple else ()

    @property
    def no_target(self) -> int:
        """What fills the target of an image without an answer."""
        return 0 if self.multiple else -1

    def target(self, labels: Sequence[str]) -> Array:
        """The target of these labels; names that are no class are left out."""
        chosen = [self.columns[label] for label in self.current(labels) if label in self.columns]
        if not self.multiple:
            return np.array(chosen[0] if chosen else -1)
        target = np.zeros(len(self.classes), np.int64)
        target[chosen] = 1
        return target

    def labels(self, target: Array) -> tuple[str, ...]:
        """The labels that a target stands for."""
        if self.multiple:
            return tuple(self.classes[n] for n in np.flatnonzero(target))
        return (self.classes[int(target)],) if target >= 0 else ()

    def answer(self, labels: Sequence[str]) -> tuple[str, ...] | None:
        """What is equal for equal answers; None where there is no answer (several may be none at all)."""
        if self.multiple:
            return tuple(sorted(labels))
        return tuple(labels[:1]) or None


def parse(tag: ET.Element, around: Surroundings, images: Mapping[str, ET.Element]) -> Choices | str:
    """The control that a Choices tag stands for, or why it can't be predicted.

    Classes are what results store: a choice's ``alias`` where it has one, else its ``value``. Choices inside
    of choices are left out: Label Studio's editor doesn't offer them unless ``allowNested`` is set.
    """
    name = tag.get("name", "")
    if not name:
        return "it has no name"
    if "repeater" in around.inside:
        return "it is inside of a Repeater, which asks it several times"
    if is_on(tag, "perRegion"):
        return "it is asked per region, not per image"
    if is_on(tag, "perItem"):
        return "it is asked per item of a list (perItem), not once per task"
    targets = [target.strip() for target in tag.get("toName", "").split(",")]
    image = next((target for target in targets if target and target in images), None)
    if image is None:
        return f"toName={tag.get('toName')!r} is no Image"
    value = images[image].get("value") or images[image].get("valueList") or ""
    key = value.strip().removeprefix("$")
    if not value.strip().startswith("$") or not is_key(key):
        return f"its image's value {value!r} is not one $KEY of the task"
    if tag.get("value") or tag.get("apiUrl"):
        return "its choices come from the task or from elsewhere, so there is no fixed list of classes"
    if is_on(tag, "allowNested"):
        # Also where no choice is inside of another: answers are [["A"]], and of predictions Label Studio's
        # import takes lists of text only, while its editor preselects by paths only.
        return 'it has allowNested, so its answers are nested paths ([["A"]]), which no prediction can hold'
    choices = list(outermost(tag, "choice"))
    classes = tuple(
        dict.fromkeys(text for choice in choices if (text := choice.get("alias") or choice.get("value")))
    )
    multiple = tag.get("choice", "single").lower() == "multiple"
    if not classes or (len(classes) == 1 and not multiple):
        return "it has no Choice" if not classes else f"it has one Choice only, {classes[0]!r}"
    several = not images[image].get("value")
    return Choices(
        from_name=name,
        to_name=image,
        image_key=key,
        classes=classes,
        multiple=multiple,
        image_list=several,
    )
