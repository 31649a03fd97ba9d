"""The addresses that Label Studio, scripts and our own commands call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, jsonify, request

from ml_backend.domain.errors import BadRequest
from ml_backend.domain.model import MODEL_VERSION
from ml_backend.services.serving.registry import Projects
from ml_backend.version import version
from ml_backend.wire import PredictJson, SetupJson, TaskJson, parse, project_id, webhook


def routes(projects: Projects, elsewhere: Callable[[], list[dict[str, Any]]]) -> Blueprint:
    """All routes over the projects; ``elsewhere`` gives the status of those that other replicas own."""
    api = Blueprint("rush", __name__)
    running = version()

    @api.get("/")
    @api.get("/health")
    def health() -> Response:
        # Label Studio asks before every task it serves: no Redis, no lock.
        return jsonify(status="UP", model_class="RushModel", version=running)

    @api.get("/versions")
    def versions() -> Response:
        return jsonify(versions=[MODEL_VERSION])

    @api.post("/setup")
    def setup() -> Response:
        body = parse(SetupJson, _json())
        number = project_id(body.project)
        if number is not None and projects.register(number, body.label_config):
            projects.in_turn(number, "setup", lambda project: project.configured(body.label_config))
        return jsonify(model_version=MODEL_VERSION)

    @api.post("/predict")
    def predict() -> Response:
        body = parse(PredictJson, _json())
        tasks = [parse(TaskJson, row).to_domain() for row in body.tasks]
        project = projects.get(project_id(body.project), body.label_config or "")
        return jsonify(results=project.predictions(tasks), model_version=MODEL_VERSION)

    @api.post("/webhook")
    def take_webhook() -> Response:
        left_out = projects.hear(webhook(_json()))
        return jsonify({"status": "ok"} | ({"left_out": left_out} if left_out else {}))

    @api.post("/train")
    def train() -> tuple[Response, int]:
        project = projects.get(project_id(_json().get("project")))
        project.ports.jobs.enqueue("train", project.ref, force=True)
        return jsonify(status="queued"), 201

    @api.get("/metrics")
    def metrics() -> Response:
        return jsonify(status="UP")

    @api.get("/status")
    def status() -> Response:
        return jsonify(projects=[*(project.report() for project in projects), *elsewhere()])

    return api


def _json() -> dict[str, Any]:
    try:
        body = request.get_json(force=True, silent=True)
    except RecursionError:
        body = None
    if not isinstance(body, dict):
        raise BadRequest(f"The body must be a JSON object, got {request.get_data()[:60]!r}.")
    return body
