"""The commands that the README gives, so that what people paste is what is tested."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
ATTACH = "Attach it to your Label Studio"


def commands(section: str = ATTACH) -> list[list[str]]:
    """The lines of a section's first code block as words, in order.

    A comment that begins with ``or --OPTION …`` says other arguments of the same command: it follows as one.
    """
    found = re.search(
        rf"^## {re.escape(section)}\n.*?^```\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE
    )
    if found is None:
        raise ValueError(f"README.md has no section {section!r} with a block of commands.")
    rows: list[list[str]] = []
    for line in found[1].splitlines():
        if words := shlex.split(line, comments=True):
            rows.append(words)
            if other := re.search(r"# or (--.*)$", line):
                named = next((n for n, word in enumerate(words) if word.startswith("--")), len(words))
                rows.append(words[:named] + shlex.split(other[1]))
    return rows


def for_project(words: list[str], project: int) -> list[str]:
    """The same command for another project than the README's."""
    return [
        str(project) if before == "--project" else word
        for before, word in zip(["", *words], words, strict=False)
    ]
