"""Values as messages show them: short, on one line, and without what must not be seen."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

LONGEST = 160
"""Characters of a value in a message, which is one line of at most 200."""

_DATA = re.compile(r"data:[\w.+/;=-]{0,60}?,\S*", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
_KEPT_QUERY = ("/data/local-files/",)
"""Paths of Label Studio whose query names the file; every other query may be a signature."""


def shown(text: object, most: int = LONGEST) -> str:
    """The text on one line, cut; addresses without user, password and query, data: addresses without data."""
    line = " ".join(str(text)[: 50 * most].split())  # a data: address may have megabytes
    line = _ADDRESS.sub(lambda found: _address(found[0]), _DATA.sub(_data, line))
    return line if len(line) <= most else line[: most - 1] + "…"


def _data(found: re.Match[str]) -> str:
    return found[0].partition(",")[0] + ",…"


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]
    query = f"?{parts.query}" if parts.query and any(path in parts.path for path in _KEPT_QUERY) else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"
