"""Label config XML → what may be predicted."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import quoteattr

from ml_backend.domain.errors import UnusableConfig
from ml_backend.domain.model import LabelSpec

MAX_LENGTH = 1_000_000
"""Characters; the longest config that is parsed."""

_NEED = 'Rush predicts <Choices toName="IMAGE"> with fixed <Choice value="…"/> on an <Image value="$KEY"/>.'


class _NoDoctype(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise UnusableConfig("The label config has a DOCTYPE, which is refused.", "Remove it.")


def choices_config(classes: Sequence[str]) -> str:
    """The label config of single choice among these classes: digit keys for them, or for the first ten."""
    keys = {name: str((n + 1) % 10) for n, name in enumerate(classes[:10])}
    if set(classes) <= set("0123456789"):
        keys = {name: name for name in classes}
    rows = "".join(
        f"<Choice value={quoteattr(name)}" + (f' hotkey="{keys[name]}"' if name in keys else "") + "/>"
        for name in classes
    )
    return (
        '<View><Image name="image" value="$image" zoom="true"/>'
        f'<Choices name="label" toName="image" choice="single" showInline="true">{rows}</Choices></View>'
    )


def parse_label_config(xml: str) -> LabelSpec:
    """The first Choices control on an Image whose classes are fixed; UnusableConfig says why there is none.

    Classes are what results store: a choice's ``alias`` where it has one, else its ``value``. Choices inside
    of choices are left out: Label Studio's editor doesn't offer them unless ``allowNested`` is set.
    """
    root = _parse(xml)
    images = {tag.get("name", ""): tag for tag in _outermost(root, "image")}
    reasons: list[str] = []
    for control in _outermost(root, "choices"):
        found = _spec(control, images)
        if isinstance(found, LabelSpec):
            return found
        reasons.append(f"{control.get('name') or 'Choices'}: {found}")
    if not reasons:
        reasons.append("it has no Choices")
    raise UnusableConfig(f"The label config has nothing to predict ({'; '.join(reasons)[:500]}).", _NEED)


def _parse(xml: str) -> ET.Element:
    if len(xml) > MAX_LENGTH:
        raise UnusableConfig(f"The label config has {len(xml)} characters, the limit is {MAX_LENGTH}.")
    if not xml.strip():
        raise UnusableConfig("The label config is empty.", _NEED)
    parser = ET.XMLParser(target=_NoDoctype())  # noqa: S314
    try:
        parser.feed(xml)
        root = parser.close()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise UnusableConfig(f"The label config is not XML: {error}.", _NEED) from None
    if not isinstance(root, ET.Element):
        raise UnusableConfig("The label config has no element.", _NEED)
    return root


def _outermost(root: ET.Element, name: str) -> Iterator[ET.Element]:
    """Elements of that name below ``root``, in order, without those inside of another such element."""
    waiting = [*reversed(root)]
    while waiting:
        tag = waiting.pop()
        if isinstance(tag.tag, str) and tag.tag.lower() == name:
            yield tag
        else:
            waiting.extend(reversed(tag))


def _spec(control: ET.Element, images: dict[str, ET.Element]) -> LabelSpec | str:
    """What this control lets us predict, or why it doesn't."""
    name = control.get("name", "")
    if not name:
        return "it has no name"
    if control.get("perRegion", "").lower() == "true":
        return "it is asked per region, not per image"
    targets = [target.strip() for target in control.get("toName", "").split(",")]
    image = next((target for target in targets if target and target in images), None)
    if image is None:
        return f"toName={control.get('toName')!r} is no Image"
    value = images[image].get("value") or images[image].get("valueList") or ""
    key = value.removeprefix("$")
    if not value.startswith("$") or not key or "$" in key:
        return f"its image's value {value!r} is not one $KEY of the task"
    if control.get("value") or control.get("apiUrl"):
        return "its choices come from the task or from elsewhere, so there is no fixed list of classes"
    choices = list(_outermost(control, "choice"))
    nested = any(next(_outermost(choice, "choice"), None) is not None for choice in choices)
    if nested and control.get("allowNested", control.get("allownested", "")).lower() == "true":
        return "its choices are nested (allowNested), so its answers are paths"
    classes = tuple(
        dict.fromkeys(text for choice in choices if (text := choice.get("alias") or choice.get("value")))
    )
    multiple = control.get("choice", "single").lower() == "multiple"
    if not classes or (len(classes) == 1 and not multiple):
        return "it has no Choice" if not classes else f"it has one Choice only, {classes[0]!r}"
    return LabelSpec(from_name=name, to_name=image, image_key=key, classes=classes, multiple=multiple)
