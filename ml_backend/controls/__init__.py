"""What a label config asks, one module for each kind of control.

A kind parses its tag, reads its part of a result, writes a suggestion, tells whether an answer agrees with
one, and says what strategies and heads see of it. Whoever needs one of these asks the control.
"""

from __future__ import annotations

from ml_backend.controls import choices
from ml_backend.controls.choices import Choices
from ml_backend.domain.errors import UnusableConfig
from ml_backend.domain.label_config import NEED, outermost, parse_xml

__all__ = ["Choices", "Control", "parse_label_config"]

Control = Choices
"""Every kind of control."""


def parse_label_config(xml: str) -> Control:
    """The project's control: the first Choices on an Image whose classes are fixed.

    UnusableConfig says of each one why it can't be predicted.
    """
    root = parse_xml(xml)
    images = {tag.get("name", ""): tag for tag in outermost(root, "image")}
    reasons: list[str] = []
    for tag in outermost(root, "choices"):
        found = choices.parse(tag, images)
        if isinstance(found, Choices):
            return found
        reasons.append(f"{tag.get('name') or 'Choices'}: {found}")
    if not reasons:
        reasons.append("it has no Choices")
    raise UnusableConfig(f"The label config has nothing to predict ({'; '.join(reasons)[:500]}).", NEED)
