"""What a label config asks, one module for each kind of control.

A kind parses its tag, reads its part of a result, writes a suggestion, tells whether an answer agrees with
one, and says what strategies and heads see of it. Whoever needs one of these asks the control.
"""

from __future__ import annotations

import contextlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace

from ml_backend.controls import choices
from ml_backend.controls.choices import Choices
from ml_backend.domain.errors import UnusableConfig
from ml_backend.domain.label_config import NEED, Surroundings, located, parse_xml

__all__ = [
    "Choices",
    "Control",
    "control_of",
    "described",
    "is_read_by",
    "must_read_anew",
    "parse_label_config",
    "renames_of",
    "taken_in",
]

Control = Choices
"""Every kind of control."""


def parse_label_config(xml: str, chosen: str = "", renames: Mapping[str, str] | None = None) -> Control:
    """The project's primary control: the one ``chosen``, else the first Choices asked of every image.

    A question that is shown after another answer only comes behind those that always are. UnusableConfig
    says of each control why it can't be predicted. ``renames``: classes and what they are called by now.
    """
    images: dict[str, ET.Element] = {}
    asked: list[tuple[ET.Element, Surroundings]] = []
    names: list[str] = []
    for tag, around in located(parse_xml(xml)):
        if tag.get("name") and tag.get("toName"):
            names.append(tag.get("name", ""))
        match tag.tag.lower():
            case "image" if not around.inside & {"image", "repeater"}:
                images[tag.get("name", "")] = tag
            case "choices" if "choices" not in around.inside:
                asked.append((tag, around))
    usable: list[tuple[bool, Control]] = []
    reasons: list[str] = []
    for tag, around in asked:
        name = tag.get("name") or "Choices"
        found = choices.parse(tag, around, images) if chosen in ("", name) else "another one is chosen"
        if isinstance(found, Choices):
            usable.append((around.conditional, found))
        elif not chosen or name == chosen:
            reasons.append(f"{name}: {found}")
    if not usable:
        if chosen and not reasons:
            there = ", ".join(names) or "none"
            raise UnusableConfig(
                f"The label config has no Choices {chosen!r}, which is to be predicted; it has {there}.",
                "Choose another control with rush connect.",
            )
        reasons = reasons or ["it has no Choices"]
        raise UnusableConfig(f"The label config has nothing to predict ({'; '.join(reasons)[:500]}).", NEED)
    primary = next((control for conditional, control in usable if not conditional), usable[0][1])
    others = tuple(name for name in dict.fromkeys(names) if name != primary.from_name)
    return replace(primary, others=others).renamed(renames or {})


def control_of(options: Mapping[str, str], label_config: str | None = None) -> Control:
    """A project's control by its options in ``State``; by another label config where one is given.

    Everybody who reads a result gets the control here. Raises UnusableConfig.
    """
    xml = options.get("label_config", "") if label_config is None else label_config
    return parse_label_config(xml, options.get("control", ""), renames_of(options))


def renames_of(options: Mapping[str, str]) -> dict[str, str]:
    """Old name → new one, as a person told."""
    return dict(json.loads(options.get("renames") or "{}"))


def taken_in(options: Mapping[str, str], label_config: str, **chosen: str) -> tuple[Control, dict[str, str]]:
    """The control by a label config that is to become the project's, and the options that are to be set.

    ``chosen`` are options that are to be set along with it. Raises UnusableConfig before anything is set.
    """
    control = control_of({**options, **chosen}, label_config)
    change = {"label_config": label_config, **chosen}
    if not options.get("reading") and options.get("label_config"):
        with contextlib.suppress(UnusableConfig):
            change["reading"] = control_of(options).reading  # by which the answers there are were read
    return control, change


def is_read_by(options: Mapping[str, str], control: Control) -> bool:
    """Whether the answers in ``State`` are of this control, not of another one that was asked for before."""
    return bool(json.loads(options.get("reading", control.reading))[0] == control.from_name)


def must_read_anew(options: Mapping[str, str], control: Control) -> bool:
    """Whether a sync has to read the answers anew before anything learns from them."""
    return options.get("reading", control.reading) != control.reading


def described(control: Control) -> str:
    """Which question is predicted, from which key of the task, and what is left alone."""
    kind = "several of" if control.multiple else "one of"
    said = f"predicts {control.from_name} ({kind} {len(control.classes)}) from data.{control.image_key}"
    if control.renames:
        said += f"; renamed: {', '.join(f'{old}={new}' for old, new in control.renames)}"
    return said + (f"; left alone: {', '.join(control.others)}" if control.others else "")
