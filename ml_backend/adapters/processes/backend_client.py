"""Our own backend over HTTP, for the command line."""

from __future__ import annotations

from typing import Any

import httpx

from ml_backend.domain.errors import NotReady


def backend_status(url: str, auth: tuple[str, str] | None = None, token: str = "") -> list[dict[str, Any]]:
    """Return what the backend at ``url`` says of its projects; NotReady where none answers.

    With the ``token`` where there is one, else as user and password.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        reply = httpx.get(
            f"{url}/status", auth=None if token else auth, headers=headers, timeout=10, trust_env=False
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
