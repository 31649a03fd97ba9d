"""One GET, as a browser or Label Studio would send it, whatever the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from ssl import SSLContext
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

from ml_backend.settings import authorities

TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Reply:
    """Status and headers; status 0 where there was no answer, ``error`` says why."""

    status: int
    headers: Mapping[str, str]
    error: str = ""


def get(url: str, headers: Mapping[str, str] | None = None) -> Reply:
    """The answer's status and headers; the body stays unread. Only http and https."""
    if urlsplit(url).scheme not in ("http", "https"):
        return Reply(0, {}, f"{url[:100]} is no http address")
    try:
        request = Request(url, headers=dict(headers or {}))  # noqa: S310
        with _opener().open(request, timeout=TIMEOUT) as answer:
            return Reply(answer.status, _lower(answer.headers))
    except HTTPError as error:
        with error:
            return Reply(error.code, _lower(error.headers))
    except (OSError, HTTPException, ValueError) as error:
        return Reply(0, {}, str(getattr(error, "reason", error)))


def _opener() -> OpenerDirector:
    trusted = authorities()
    context = trusted if isinstance(trusted, SSLContext) else None
    # Without proxies, like Label Studio's own connections to a backend.
    return build_opener(ProxyHandler({}), HTTPSHandler(context=context))


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
