"""Requests to one Label Studio: keep-alive, both kinds of token, retries, errors that name the next step."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_result,
    stop_after_attempt,
    stop_before_delay,
    wait_chain,
    wait_random,
)

from ml_backend.domain.deadline import LEAST, left
from ml_backend.domain.errors import LabelStudioError, NotFound, Refused, RushError, Unauthorized
from ml_backend.domain.shown import shown
from ml_backend.settings import authorities

REFUSALS = frozenset({400, 413, 415, 422})
"""Statuses that may be due to one of the things in a request."""
_RETRY_STATUS = frozenset({502, 503, 504})
_TRIES = 3
_WAITS = wait_chain(wait_random(0.05, 0.15), wait_random(0.2, 0.6))
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
_STALE = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)  # a kept-alive connection was closed


class Token(httpx.Auth):
    """A legacy token as it is, or a JWT personal access token exchanged for short-lived access tokens.

    Sent to ``origin``, below its path, and to nobody else. Safe for many threads without a lock, under
    which a submit would wait for somebody else's exchange: two that exchange at once get two tokens, and
    both are good.
    """

    def __init__(self, token: str, origin: str) -> None:
        self._token = token.strip()
        self._origin = httpx.URL(origin)
        self._jwt = self._token.count(".") == 2
        self._access = ""
        self._fresh_until = 0.0

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Authorize the request; exchange anew where less than 30 s are left, and once after a 401."""
        if not self._is_inside(request.url):
            yield request
            return
        if not self._jwt:
            request.headers["Authorization"] = f"Token {self._token}"
            yield request
            return
        if time.monotonic() >= self._fresh_until:
            yield from self._exchange(request)
        access = self._access
        request.headers["Authorization"] = f"Bearer {access}"
        reply = yield request
        if reply.status_code == 401:
            if access == self._access:  # nobody else has exchanged it meanwhile
                yield from self._exchange(request)
            request.headers["Authorization"] = f"Bearer {self._access}"
            yield request

    def _is_inside(self, url: httpx.URL) -> bool:
        """Whether the address is this Label Studio's: its host, and below its path."""
        path = unquote(url.path)
        below = path.startswith(self._origin.path.rstrip("/") + "/") and ".." not in path.split("/")
        return below and _site(url) == _site(self._origin)

    def _exchange(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        url = f"{str(self._origin).rstrip('/')}/api/token/refresh/"
        timeout = {"timeout": request.extensions.get("timeout", {})}
        headers = {"Connection": "close"}  # see Transport
        body = {"refresh": self._token}
        reply = yield httpx.Request("POST", url, json=body, headers=headers, extensions=timeout)
        reply.read()
        if reply.status_code != 200:
            raise failure("POST", url, reply)
        access = _json(reply).get("access")
        if not isinstance(access, str):
            raise LabelStudioError(f"POST {url} answered without an access token.", "Is this Label Studio?")
        self._access = access
        self._fresh_until = time.monotonic() + max(_lifetime(access) - 30.0, 1.0)


def _site(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _lifetime(access: str) -> float:
    """Seconds that an access token lives, by its own two dates (our clock may differ from the server's)."""
    try:
        part = access.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return float(claims["exp"]) - float(claims["iat"])
    except (ValueError, KeyError, IndexError, TypeError):
        return 300.0


class Transport:
    """One keep-alive connection pool to one Label Studio; safe for many threads."""

    def __init__(self, origin: str, token: str, timeout: float) -> None:
        self.origin = origin.rstrip("/")
        self.timeout = timeout
        headers = {"Accept": "application/json"}
        if self.origin.startswith("http://"):
            # Label Studio's own server sends head and body apart: on a kept connection the kernel holds the
            # body back for 40 ms (Nagle against delayed acknowledgements); a fresh one costs 1 ms.
            headers["Connection"] = "close"
        hooks = {"response": [_keep_location]}
        self.client = httpx.Client(
            timeout=timeout, headers=headers, trust_env=False, verify=authorities(), event_hooks=hooks
        )
        self._token = Token(token, self.origin)

    def request(self, method: str, path: str, *, timeout: float | None = None, **request: Any) -> Any:
        """The JSON answer, None where it has none.

        Retried: GETs on lost connections and 502, 503, 504; the rest only where the request can't have been
        carried out, PATCH and DELETE also on a lost connection. ``timeout`` bounds all tries together, and so
        does the thread's ``deadline``.
        """
        url = f"{self.origin}/{path.lstrip('/')}"
        limit = left(timeout or self.timeout)
        end = time.monotonic() + limit
        tries = Retrying(
            retry=retry_if_exception(lambda error: _worth_another_try(method, error))
            | retry_if_result(lambda reply: method == "GET" and reply.status_code in _RETRY_STATUS),
            wait=_WAITS,
            stop=stop_after_attempt(_TRIES) | stop_before_delay(limit),
            retry_error_callback=_last,
        )
        try:
            reply = tries(self._once, method, url, end, **request)
        except httpx.HTTPError as error:
            raise unreachable(method, url, error) from None
        if not reply.is_success:
            raise failure(method, url, reply)
        return _json(reply)

    def _once(self, method: str, url: str, end: float, **request: Any) -> httpx.Response:
        seconds = max(end - time.monotonic(), LEAST)
        return self.client.request(method, url, timeout=seconds, auth=self._token, **request)

    @contextmanager
    def stream(self, url: str, *, authorised: bool) -> Iterator[httpx.Response]:
        """One GET whose body the caller reads; redirects (``extensions["location"]``) are the caller's."""
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        auth = self._token if authorised else None
        with self.client.stream("GET", url, headers=headers, auth=auth, follow_redirects=False) as reply:
            yield reply

    def close(self) -> None:
        """Close every connection."""
        self.client.close()


def _keep_location(reply: httpx.Response) -> None:
    """Take a redirect's address out of httpx's sight: it reads it in advance and fails where it can't."""
    if "location" in reply.headers:
        reply.extensions["location"] = reply.headers.pop("location")


def _last(tried: RetryCallState) -> Any:
    """What the last try gave: its answer, or its error."""
    return tried.outcome.result() if tried.outcome is not None else None


def _worth_another_try(method: str, error: BaseException) -> bool:
    if isinstance(error, _NOT_SENT):
        return True
    if method == "GET":
        return isinstance(error, httpx.TransportError)
    return method in ("PATCH", "PUT", "DELETE") and isinstance(error, _STALE)


def _json(reply: httpx.Response) -> Any:
    if reply.status_code == 204 or not reply.content:
        return None
    try:
        return reply.json()
    except ValueError:
        raise LabelStudioError(
            f"{reply.request.method} {reply.request.url} answered {reply.status_code} without JSON.",
            "Check that the address is Label Studio's own, not a login page or a proxy.",
        ) from None


def unreachable(method: str, url: str, error: httpx.HTTPError) -> LabelStudioError:
    """The error for a request that got no answer."""
    kind = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "can't be reached"
    return LabelStudioError(
        f"Label Studio {kind}: {method} {url} ({type(error).__name__}: {error}).",
        "Check that it runs and that LABEL_STUDIO_URL is its address as seen from here.",
    )


def failure(method: str, url: str, reply: httpx.Response) -> RushError:
    """The error for an answer that is one, with Label Studio's own words in it."""
    message = f"{method} {url} answered {reply.status_code}: {_detail(reply)}"
    if reply.status_code == 401:
        return Unauthorized(
            message,
            "Check LABEL_STUDIO_API_KEY: a personal access token, or a legacy token where the organization "
            "allows those (Organization → API Tokens Settings).",
        )
    if reply.status_code == 404:
        return NotFound(message, "Check the id, and that the token's user may see it.")
    hints = {
        400: "Label Studio refused what was sent; its own words say which field.",
        403: "The token's user lacks the right, or Label Studio blocks private addresses: "
        "start it with SSRF_PROTECTION_ENABLED=false and ML_BLOCK_LOCAL_IP=false.",
        413: "Send fewer tasks at once, or raise Label Studio's DATA_UPLOAD_MAX_MEMORY_SIZE.",
    }
    kind = Refused if reply.status_code in REFUSALS else LabelStudioError
    return kind(message, hints.get(reply.status_code, "See Label Studio's log for the cause."))


def _detail(reply: httpx.Response) -> str:
    try:
        body = reply.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        return shown(reply.text[:2000] or reply.reason_phrase, 200)
    errors = body.get("validation_errors")
    said = [str(body[name]) for name in ("detail", "error") if body.get(name)]
    if errors:
        said.append(json.dumps(errors, ensure_ascii=False))
    return shown(" ".join(said) or json.dumps(body, ensure_ascii=False), 500)
