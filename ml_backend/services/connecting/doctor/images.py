"""Images, for the backend and for the browser."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from ml_backend.domain.errors import BadImage
from ml_backend.domain.shown import shown
from ml_backend.services.connecting.doctor import web
from ml_backend.services.connecting.doctor.context import CannotCheckError, CheckContext, Fault

SHOWN = 10
"""Images that can't be read, named one by one."""


def readable(context: CheckContext) -> Iterator[Fault]:
    """The backend reads the images of the first tasks."""
    if not context.images:
        raise CannotCheckError("the project has no tasks")
    for task, url in context.images.items():
        if not url:
            yield Fault(
                f"Task {task} has no image.",
                f"its data has no {context.control.image_key!r}",
                f"Import it again with data.{context.control.image_key}.",
            )
            continue
        try:
            context.studio.download(url, context.ref.id)
        except BadImage as error:
            yield Fault(f"The backend can't read the image of task {task}.", error.message, _fix(error, url))


def _fix(error: BadImage, url: str) -> str:
    return (
        error.hint
        or f"Open {shown(url, 100)} from the backend's machine, and correct the address or the access."
    )


def unread(context: CheckContext) -> Iterator[Fault]:
    """Workers could read every image that they have asked for."""
    found = sorted(context.state.unread(context.ref).values(), key=lambda it: it.task)
    for it in found[:SHOWN]:
        tries = f"tried {it.tries} times, " if it.tries > 1 else ""
        again = "not again" if math.isinf(it.next_try) else "again " + _in(it.next_try - time.time())
        yield Fault(
            f"The image of task {it.task} can't be read.",
            f"{it.why} {tries}{again}",
            f"Mend it, then run: rush sync --project {context.ref.id}" if it is found[0] else "",
            warning=True,
        )
    if len(found) > SHOWN:
        yield Fault(
            f"And {len(found) - SHOWN} more images.",
            f"{len(found)} in all",
            "See the workers' log.",
            warning=True,
        )


def _in(seconds: float) -> str:
    """In how long."""
    minutes = max(seconds, 0) / 60
    return f"in {minutes:.0f} min" if minutes < 120 else f"in {minutes / 60:.0f} h"


def cors(context: CheckContext) -> Iterator[Fault]:
    """A browser on Label Studio's page may load images from other origins."""
    if not context.images:
        raise CannotCheckError("the project has no tasks")
    page = _origin(context.ref.origin)
    for origin, url in _foreign(context, page).items():
        reply = web.get(url, {"Origin": page, "Range": "bytes=0-0"})
        allowed = reply.headers.get("access-control-allow-origin")
        if reply.status == 0:
            yield Fault(
                f"{origin} does not answer.", reply.error, f"Check that {shown(url, 100)} can be opened."
            )
        elif allowed not in ("*", page):
            yield Fault(
                f"{origin} sends no CORS header for Label Studio: browsers show an error, not the image.",
                f"Access-Control-Allow-Origin: {allowed or 'missing'}",
                f"Let {origin} answer with the header Access-Control-Allow-Origin: {page}",
            )


def _foreign(context: CheckContext, page: str) -> dict[str, str]:
    """One image for each other origin."""
    urls = (url for url in context.images.values() if urlsplit(url).scheme in ("http", "https"))
    return {_origin(url): url for url in urls if _origin(url) != page}


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
