"""Our own backend over HTTP, for the command line."""

from __future__ import annotations

from typing import Any

import httpx

from ml_backend.errors import NotReady


def backend_status(url: str, auth: tuple[str, str] | None = None) -> list[dict[str, Any]]:
    """Return what the backend at ``url`` says of its projects; NotReady where none answers."""
    try:
        reply = httpx.get(f"{url}/status", auth=auth, timeout=10, trust_env=False)
        reply.raise_for_status()
    except httpx.HTTPError as error:
        raise NotReady(f"No backend answers at {url}: {error}.", "Start it: rush start") from None
    projects: list[dict[str, Any]] = reply.json()["projects"]
    return projects
