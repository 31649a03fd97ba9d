"""Requests that reached another replica than the one that owns their project are passed on to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
from flask import Flask, Response, request

from ml_backend.domain.errors import Unavailable
from ml_backend.services.serving.registry import Projects
from ml_backend.wire import project_id

PASSED_ON = "X-Rush-Passed-On"
"""Of a request that came from another replica: never passed on again."""
KEPT = ("Authorization", "X-Rush-Secret", "Content-Type")
TIMEOUT = 0.9
"""Label Studio gives a webhook one second."""
AGAIN = "Another one takes over within seconds; what was missed is synced then."
PER_PROJECT = ("/predict", "/webhook", "/setup", "/train")


def install(app: Flask, projects: Projects) -> Callable[[], list[dict[str, Any]]]:
    """Let the app pass requests on; what decides who may send any is registered before.

    Returns what gives the status of the projects that other replicas own, as far as these answer.
    """
    client = httpx.Client(timeout=TIMEOUT, trust_env=False)

    @app.before_request
    def pass_on() -> Response | None:
        if request.path not in PER_PROJECT:
            return None
        number = _project(request.get_json(force=True, silent=True))
        there = "" if number is None else projects.elsewhere(number)
        if there and PASSED_ON in request.headers:
            raise Unavailable(f"Project {number} has just gone to the replica at {there}.", AGAIN)
        return _sent(client, there) if there else None

    def elsewhere() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for there in [] if PASSED_ON in request.headers else projects.others():
            with suppress(Unavailable):
                rows += json.loads(_sent(client, there).get_data())["projects"]
        return rows

    return elsewhere


def _sent(client: httpx.Client, there: str) -> Response:
    headers = {name: request.headers[name] for name in KEPT if name in request.headers}
    try:
        reply = client.request(
            request.method,
            f"{there}{request.path}",
            content=request.get_data(),
            headers=headers | {PASSED_ON: "1"},
        )
    except httpx.HTTPError as error:
        raise Unavailable(
            f"The replica at {there} owns this project and does not answer: {error}.",
            AGAIN,
        ) from error
    return Response(reply.content, reply.status_code, content_type=reply.headers.get("Content-Type"))


def _project(body: Any) -> int | None:
    """The project that a body of Label Studio's is about; None where it says none."""
    value = body.get("project") if isinstance(body, dict) else None
    value = value.get("id") if isinstance(value, dict) else value
    return project_id(value) if isinstance(value, str | int) else None
