"""Our own backend over HTTP, for the command line and for its other replicas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from ml_backend.domain.deadline import left
from ml_backend.domain.errors import NotReady, Unavailable
from ml_backend.ports import Reply
from ml_backend.settings import authorities

REPLICA_SECONDS = 0.9
"""How long another replica may take: Label Studio gives a webhook one second."""


class HttpReplicas:
    """``ports.Replicas`` over one connection pool."""

    def __init__(self) -> None:
        self._client = httpx.Client(timeout=REPLICA_SECONDS, trust_env=False, verify=authorities())

    def send(self, address: str, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Hand a request to the replica at this address; Unavailable where it does not answer in time."""
        try:
            reply = self._client.request(
                method,
                f"{address}{path}",
                content=body,
                headers=dict(headers),
                timeout=left(REPLICA_SECONDS),
            )
        except httpx.HTTPError as error:
            raise Unavailable(
                f"The replica at {address} owns this project and does not answer: {error}.",
                "Another one takes over within seconds; what was missed is synced then.",
            ) from error
        return Reply(reply.status_code, reply.content, reply.headers.get("Content-Type"))


def backend_status(url: str, auth: tuple[str, str] | None = None, token: str = "") -> list[dict[str, Any]]:
    """Return what the backend at ``url`` says of its projects; NotReady where none answers.

    With the ``token`` where there is one, else as user and password.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        reply = httpx.get(
            f"{url}/status",
            auth=None if token else auth,
            headers=headers,
            timeout=10,
            trust_env=False,
            verify=authorities(),
        )
        reply.raise_for_status()
    except httpx.HTTPStatusError as error:
        raise NotReady(
            f"The backend at {url} answers {error.response.status_code}.",
            "Set RUSH_BASIC_AUTH_USER and RUSH_BASIC_AUTH_PASSWORD, or RUSH_TOKEN, as the backend has them."
            if error.response.status_code == 401
            else "Its log says why.",
        ) from None
    except httpx.HTTPError as error:
        raise NotReady(f"No backend answers at {url}: {error}.", "Start it: rush start") from None
    try:
        projects: list[dict[str, Any]] = reply.json()["projects"]
    except (ValueError, KeyError, TypeError):
        raise NotReady(
            f"What answers at {url} is no backend of Rush: {reply.text[:60]!r}.", "Check RUSH_PUBLIC_URL."
        ) from None
    return projects
