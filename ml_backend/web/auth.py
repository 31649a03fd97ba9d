"""Who may send requests: Label Studio, our own commands, other replicas."""

from __future__ import annotations

import hmac
from ipaddress import ip_address

from flask import request

from ml_backend.domain.errors import BadRequest, Unauthorized
from ml_backend.settings import Settings


def require_auth_if_public(settings: Settings) -> None:
    """BadRequest where the backend would listen beyond this machine and let anybody in."""
    try:
        local = ip_address(settings.host).is_loopback
    except ValueError:
        local = settings.host == "localhost"
    lacking = [
        name
        for name, value in (
            ("RUSH_BASIC_AUTH_USER", settings.basic_auth_user),
            ("RUSH_BASIC_AUTH_PASSWORD", settings.basic_auth_password.get_secret_value()),
            ("RUSH_WEBHOOK_SECRET", settings.webhook_secret.get_secret_value()),
        )
        if not value
    ]
    if lacking and not local:
        raise BadRequest(
            f"RUSH_HOST={settings.host} would let everybody in who can reach this machine.",
            f"Set {', '.join(lacking)}, then run rush connect, or listen on 127.0.0.1.",
        )


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
