"""How every adapter reaches Redis, and how its address may be shown."""

from __future__ import annotations

from urllib.parse import urlsplit

from redis import Redis

from ml_backend.domain.errors import BadRequest


def connect(url: str) -> Redis:
    """A Redis client with a connection pool that many threads may share; connects on first use."""
    return Redis.from_url(url, decode_responses=True, socket_connect_timeout=2, socket_timeout=10)


def address(url: str) -> str:
    """The part of a Redis URL that may be shown: no user, no password."""
    try:
        parts = urlsplit(url)
        shown = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
    except ValueError:
        return "RUSH_REDIS_URL"
    return "RUSH_REDIS_URL" if "@" in parts.path else shown  # part of a password


def checked(url: str) -> str:
    """The URL itself; BadRequest, which shows none of it, where it can't be one."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("redis", "rediss", "unix") and "@" not in parts.path and (parts.port or 1)
    except ValueError:
        fine = False
    if not fine:
        raise BadRequest(
            "RUSH_REDIS_URL is no address of a Redis.",
            "Write redis://:password@host:6379/0, special characters of the password as %2F and the like.",
        )
    return url
