"""How every adapter reaches Redis, and how its address may be shown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from ml_backend.domain import deadline
from ml_backend.domain.errors import StoreError

PROMPT, PATIENT = 0.7, 10.0
"""Seconds for one answer, inside of a deadline and outside of any."""
AWAY_SECONDS = 1.0
"""How long nobody who is in a hurry waits once more for a Redis that did not answer."""


class Connections:
    """One Redis for many threads: prompt inside of a ``deadline``, patient outside of any.

    A Redis that hangs costs one of those in a hurry PROMPT seconds now and then, all others nothing: they are
    refused at once. Connects on first use.
    """

    def __init__(self, url: str, *, text: bool = True) -> None:
        self.address = address(url)
        self._prompt, self._patient = (
            Redis.from_url(
                url,
                decode_responses=text,
                socket_connect_timeout=min(seconds, 2.0),
                socket_timeout=seconds,
                retry=Retry(NoBackoff(), 1, (RedisConnectionError,)),  # one that was closed while it lay idle
            )
            for seconds in (PROMPT, PATIENT)
        )
        self._away_until = 0.0

    @contextmanager
    def use(self, hint: str = "Start it or set RUSH_REDIS_URL.") -> Iterator[Any]:
        """A client for what the block asks; StoreError with the ``hint`` where Redis doesn't answer."""
        hurry = deadline.runs()
        if hurry and time.monotonic() < self._away_until:
            raise self._silent("it hangs", hint)
        try:
            yield self._prompt if hurry else self._patient
        except RedisTimeoutError as error:
            self._away_until = time.monotonic() + AWAY_SECONDS
            raise self._silent(error, hint) from error
        except RedisError as error:
            raise self._silent(error, hint) from error

    def subscriber(self) -> PubSub:
        """A subscription of one listening thread."""
        return self._prompt.pubsub(ignore_subscribe_messages=True)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._prompt.close()
        self._patient.close()

    def _silent(self, error: object, hint: str) -> StoreError:
        return StoreError(f"Redis at {self.address} doesn't answer: {str(error).rstrip('.')}.", hint)


def address(url: str) -> str:
    """The part of a Redis URL that may be shown: no user, no password."""
    try:
        parts = urlsplit(url)
        shown = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
    except ValueError:
        return "RUSH_REDIS_URL"
    return "RUSH_REDIS_URL" if "@" in parts.path else shown  # part of a password
