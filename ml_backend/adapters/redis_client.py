"""How every adapter reaches Redis, and how its address may be shown."""

from __future__ import annotations

from urllib.parse import urlsplit

from redis import Redis


def connect(url: str) -> Redis:
    """A Redis client with a connection pool that many threads may share; connects on first use."""
    return Redis.from_url(url, decode_responses=True, socket_connect_timeout=2, socket_timeout=10)


def address(url: str) -> str:
    """The part of a Redis URL that may be shown: no user, no password."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
