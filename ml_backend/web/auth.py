"""Who may send requests: Label Studio, our own commands, other replicas."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from urllib.parse import urlsplit

from flask import request

from ml_backend.domain.errors import BadRequest, Forbidden, NotJson, Unauthorized
from ml_backend.settings import Settings


def require_auth_if_public(settings: Settings) -> None:
    """BadRequest where the backend would listen beyond this machine and let anybody in."""
    lacking = [
        name
        for name, value in (
            ("RUSH_BASIC_AUTH_USER", settings.basic_auth_user),
            ("RUSH_BASIC_AUTH_PASSWORD", settings.basic_auth_password.get_secret_value()),
            ("RUSH_WEBHOOK_SECRET", settings.webhook_secret.get_secret_value()),
        )
        if not value
    ]
    if lacking and not _is_local(settings):
        raise BadRequest(
            f"RUSH_HOST={settings.host} would let everybody in who can reach this machine.",
            f"Set {', '.join(lacking)}, then run rush connect, or listen on 127.0.0.1.",
        )


def _is_local(settings: Settings) -> bool:
    """Whether the backend listens to this machine alone."""
    try:
        return ip_address(settings.host).is_loopback
    except ValueError:
        return settings.host == "localhost"


def check_sender(settings: Settings) -> None:
    """Forbidden or NotJson where a web page of somebody else's has a browser send the current request.

    A page may send forms and text anywhere, but no JSON; the browser says whose page it is, and which name
    it looked up. Programs say none of that.
    """
    host = request.headers.get("Host", "")
    if host and _is_local(settings) and not _is_ours(_name(f"//{host}"), settings):
        raise Forbidden(
            f"This backend is not called {host[:100]!r}.",
            "Set RUSH_PUBLIC_URL to the address that Label Studio is to call.",
        )
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return  # changes nothing, and no page of another site is shown the answer
    page = request.headers.get("Origin")
    own = page is not None and _place(page) in {host, _place(settings.public_url)} - {""}
    if (page is not None and not own) or request.headers.get("Sec-Fetch-Site", "none") not in (
        "same-origin",
        "none",
    ):
        raise Forbidden(
            f"A web page of another site ({(page or 'unnamed')[:100]}) may change nothing here.",
            "Send the request from a program, not from a browser.",
        )
    if request.content_type is not None and not request.is_json:
        raise NotJson(
            f"The body is {request.content_type[:100]!r}, and only JSON is read.",
            "Send it with the header Content-Type: application/json.",
        )


def _is_ours(name: str, settings: Settings) -> bool:
    """Whether a backend on this machine is called so; no name server can make an address or localhost lie."""
    try:
        ip_address(name)
    except ValueError:
        known = (settings.own_url, settings.public_url, settings.replica_url)
        return name == "localhost" or name in {_name(address) for address in known} - {""}
    return True


def _name(address: str) -> str:
    """The host's name in an address, or nothing."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _place(address: str) -> str:
    """Host and port in an address, or nothing."""
    try:
        return urlsplit(address).netloc
    except ValueError:
        return ""


def check_credentials(settings: Settings) -> None:
    """Unauthorized where the current request may not come in."""
    secret = settings.webhook_secret.get_secret_value()
    if request.path == "/webhook" and secret:
        given = request.headers.get("X-Rush-Secret", "")
        if not hmac.compare_digest(given.encode(), secret.encode()):
            raise Unauthorized(
                "The webhook carries no or a wrong X-Rush-Secret.",
                "Run rush connect to set it in Label Studio.",
            )
        return
    if settings.basic_auth_user and not _carries_credentials(settings):
        raise Unauthorized(
            "The request carries no or wrong credentials.",
            "Set user and password of the ML backend in Label Studio, or run rush connect.",
        )


def _carries_credentials(settings: Settings) -> bool:
    """Whether the request has the token, or user and password; compared in constant time."""
    given, token = request.authorization, settings.token.get_secret_value()
    if given is None:
        return False
    if given.type == "bearer":
        return bool(token) and hmac.compare_digest((given.token or "").encode(), token.encode())
    password = settings.basic_auth_password.get_secret_value()
    right = hmac.compare_digest((given.username or "").encode(), settings.basic_auth_user.encode())
    return hmac.compare_digest((given.password or "").encode(), password.encode()) and right
