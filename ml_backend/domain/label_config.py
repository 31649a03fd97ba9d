"""Label config XML: read safely, and made from a list of classes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from ml_backend.domain.errors import UnusableConfig

MAX_LENGTH = 1_000_000
"""Characters; the longest config that is parsed."""

NEED = 'Rush predicts <Choices toName="IMAGE"> with fixed <Choice value="…"/> on an <Image value="$KEY"/>.'


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


def parse_xml(xml: str) -> ET.Element:
    """The root element; UnusableConfig where there is none, it is too long, or it has a DOCTYPE."""
    if len(xml) > MAX_LENGTH:
        raise UnusableConfig(f"The label config has {len(xml)} characters, the limit is {MAX_LENGTH}.")
    if not xml.strip():
        raise UnusableConfig("The label config is empty.", NEED)
    parser = ET.XMLParser(target=_NoDoctype())  # noqa: S314
    try:
        parser.feed(xml)
        root = parser.close()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise UnusableConfig(f"The label config is not XML: {error}.", NEED) from None
    if not isinstance(root, ET.Element):
        raise UnusableConfig("The label config has no element.", NEED)
    return root


def outermost(root: ET.Element, name: str) -> Iterator[ET.Element]:
    """Elements of that name below ``root``, in order, without those inside of another such element."""
    waiting = [*reversed(root)]
    while waiting:
        tag = waiting.pop()
        if isinstance(tag.tag, str) and tag.tag.lower() == name:
            yield tag
        else:
            waiting.extend(reversed(tag))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a tag's own attributes and the elements around it make of it."""

    conditional: bool = False
    """It is shown after another answer only, or for a selected region."""
    inside: frozenset[str] = frozenset()
    """Which of FRAMES are around it."""


CONDITIONS = {"visiblewhen", "whentagname", "whenlabelvalue", "whenchoicevalue"}
FRAMES = {"choices", "image", "repeater"}


def located(root: ET.Element) -> Iterator[tuple[ET.Element, Surroundings]]:
    """Every element below ``root``, in order, with its surroundings."""
    waiting = [(tag, Surroundings()) for tag in reversed(root)]
    while waiting:
        tag, around = waiting.pop()
        conditional = around.conditional or not CONDITIONS.isdisjoint(map(str.lower, tag.attrib))
        yield tag, Surroundings(conditional, around.inside)
        within = Surroundings(conditional, around.inside | (FRAMES & {tag.tag.lower()}))
        waiting.extend((each, within) for each in reversed(tag))


def is_on(tag: ET.Element, name: str) -> bool:
    """Whether an attribute is "true"; like Label Studio's editor without regard to case in its name."""
    return any(key.lower() == name.lower() and value.lower() == "true" for key, value in tag.items())
