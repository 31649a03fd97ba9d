"""Choices: one class of a whole image, or several; and how answers become numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.domain.image_key import is_key
from ml_backend.domain.label_config import outermost
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

    # ---- in Label Studio's results

    def read(self, result: Iterable[Mapping[str, Any]] | None) -> tuple[str, ...]:
        """The labels that a result holds of this control, each once."""
        return read(result, self.from_name)

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
        chosen = [self.columns[label] for label in labels if label in self.columns]
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


def read(result: Iterable[Mapping[str, Any]] | None, from_name: str | None = None) -> tuple[str, ...]:
    """The chosen labels in a result, of the control ``from_name`` only where given."""
    found: list[str] = []
    for region in result or ():
        if not isinstance(region, Mapping) or region.get("type") != "choices":
            continue
        if from_name is not None and region.get("from_name") != from_name:
            continue
        value = region.get("value")
        picked = value.get("choices") if isinstance(value, Mapping) else None
        found.extend(text for each in (picked if isinstance(picked, list) else ()) if (text := text_of(each)))
    return tuple(dict.fromkeys(found))


def parse(tag: ET.Element, images: Mapping[str, ET.Element]) -> Choices | str:
    """The control that a Choices tag stands for, or why it can't be predicted.

    Classes are what results store: a choice's ``alias`` where it has one, else its ``value``. Choices inside
    of choices are left out: Label Studio's editor doesn't offer them unless ``allowNested`` is set.
    """
    name = tag.get("name", "")
    if not name:
        return "it has no name"
    if tag.get("perRegion", "").lower() == "true":
        return "it is asked per region, not per image"
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
    choices = list(outermost(tag, "choice"))
    nested = any(next(outermost(choice, "choice"), None) is not None for choice in choices)
    if nested and tag.get("allowNested", tag.get("allownested", "")).lower() == "true":
        return "its choices are nested (allowNested), so its answers are paths"
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
