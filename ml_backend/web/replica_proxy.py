"""Requests that reached another replica than the one that owns their project are passed on to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flask import Flask, Response, request

from ml_backend.domain.errors import Unavailable
from ml_backend.ports import Replicas
from ml_backend.services.serving.registry import Projects
from ml_backend.wire import project_id

PASSED_ON = "X-Rush-Passed-On"
"""Of a request that came from another replica: never passed on again."""
KEPT = ("Authorization", "X-Rush-Secret", "Content-Type")
PER_PROJECT = ("/predict", "/webhook", "/setup", "/train")


def install(app: Flask, projects: Projects, replicas: Replicas) -> Callable[[], list[dict[str, Any]]]:
    """Let the app pass requests on; what decides who may send any is registered before.

    Returns what gives the status of the projects that other replicas own, as far as these answer.
    """

    @app.before_request
    def pass_on() -> Response | None:
        if request.path not in PER_PROJECT:
            return None
        number = _project(request.get_json(force=True, silent=True))
        there = "" if number is None else projects.elsewhere(number)
        if there and PASSED_ON in request.headers:
            raise Unavailable(
                f"Project {number} has just gone to the replica at {there}.",
                "Another one takes over within seconds; what was missed is synced then.",
            )
        return _sent(replicas, there) if there else None

    def elsewhere() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for there in [] if PASSED_ON in request.headers else projects.others():
            with suppress(Unavailable):
                rows += json.loads(_sent(replicas, there).get_data())["projects"]
        return rows

    return elsewhere


def _sent(replicas: Replicas, there: str) -> Response:
    headers = {name: request.headers[name] for name in KEPT if name in request.headers}
    reply = replicas.send(there, request.method, request.path, request.get_data(), headers | {PASSED_ON: "1"})
    return Response(reply.body, reply.status, content_type=reply.content_type)


def _project(body: Any) -> int | None:
    """The project that a body of Label Studio's is about; None where it says none."""
    value = body.get("project") if isinstance(body, dict) else None
    value = value.get("id") if isinstance(value, dict) else value
    return project_id(value) if isinstance(value, str | int) else None
