"""The web host: Label Studio's requests in, answers out. Imports no torch."""

from __future__ import annotations

import hmac
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from ml_backend.domain.errors import BadRequest, NotFound, RushError, StoreError, TooLarge, Unauthorized
from ml_backend.domain.model import MODEL_VERSION
from ml_backend.services.serving.events import handle
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings
from ml_backend.web import replica_proxy as forward
from ml_backend.wire import PredictJson, SetupJson, TaskJson, event, parse, project_id

log = logging.getLogger(__name__)

VERSION = "0.1.0"


def create_app(settings: Settings, projects: Projects) -> Flask:
    """Build the Flask app over the projects; the caller starts and stops their maintenance loop."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = int(settings.max_body_mb * 1e6)
    app.json.sort_keys = False  # type: ignore[attr-defined]

    @app.before_request
    def admit() -> None:
        g.started, g.id = time.perf_counter(), uuid.uuid4().hex[:12]
        if request.path == "/health":
            return  # open to everybody, so nothing of it is read
        _check_credentials(settings)
        # A body in chunks doesn't say how long it is, and werkzeug cuts it off without a word.
        if request.content_length is None and len(request.get_data()) >= app.config["MAX_CONTENT_LENGTH"]:
            raise RequestEntityTooLarge

    def in_background(what: str, work: Callable[..., object], *given: Any) -> None:
        """Do what is too long for Label Studio's patience in a thread of its own."""

        def logged() -> None:
            try:
                work(*given)
            except RushError as error:
                log.warning("%s: %s", what, error)
                if isinstance(error, StoreError):
                    projects.missed()
            except Exception:
                log.exception("%s failed", what)

        projects.background.submit(logged)

    elsewhere = list if projects.leases is None else forward.install(app, projects)

    @app.get("/")
    @app.get("/health")
    def health() -> Response:
        # Label Studio asks before every task it serves: no Redis, no lock.
        return jsonify(status="UP", model_class="RushModel", version=VERSION)

    @app.get("/versions")
    def versions() -> Response:
        return jsonify(versions=[MODEL_VERSION])

    @app.post("/setup")
    def setup() -> Response:
        body = parse(SetupJson, _json())
        number = project_id(body.project)
        if number is not None and projects.register(number, body.label_config):
            in_background(f"project {number}: setup", projects.connect, number, body.label_config)
        return jsonify(model_version=MODEL_VERSION)

    @app.post("/predict")
    def predict() -> Response:
        body = parse(PredictJson, _json())
        tasks = [parse(TaskJson, row).to_domain() for row in body.tasks]
        project = projects.get(project_id(body.project))
        return jsonify(results=project.predictions(tasks), model_version=MODEL_VERSION)

    @app.post("/webhook")
    def webhook() -> tuple[Response, int]:
        body = _json()
        happened = event(body)
        project = projects.get(happened.project)
        happened = event(body, project.spec.from_name)
        project.backend.state.set_options(project.ref, webhook_seen=str(time.time()))
        imported = happened.tasks and not happened.annotations  # may be thousands
        if imported or happened.action == "PROJECT_UPDATED":
            what = f"project {project.ref.id}: {happened.action}"
            in_background(what, handle, project, happened)
        else:
            handle(project, happened)
        return jsonify(status="ok"), 200

    @app.post("/train")
    def train() -> tuple[Response, int]:
        project = projects.get(project_id((_json() or {}).get("project")))
        project.backend.jobs.enqueue("train", project.ref, force=True)
        return jsonify(status="queued"), 201

    @app.get("/metrics")
    def metrics() -> Response:
        return jsonify(status="UP")

    @app.get("/status")
    def status() -> Response:
        return jsonify(projects=[*(project.report() for project in projects), *elsewhere()])

    @app.errorhandler(RushError)
    def rush_error(error: RushError) -> tuple[Response, int]:
        level = logging.ERROR if error.status >= 500 else logging.WARNING
        log.log(level, "%s %s %s: %s", g.get("id"), request.method, request.path, error)
        if isinstance(error, StoreError):
            projects.missed()
        return jsonify(error=error.message, hint=error.hint, request_id=g.get("id")), error.status

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> tuple[Response, int]:
        known: RushError = BadRequest(error.description or error.name)
        if error.code == 413:
            known = TooLarge(
                f"The request is larger than {settings.max_body_mb:g} MB.", "Raise RUSH_MAX_BODY_MB."
            )
        elif error.code == 404:
            known = NotFound(f"There is no {request.path} here.", "See docs/protocol.md.")
        known.status = error.code or 500
        return rush_error(known)

    @app.errorhandler(Exception)
    def failure(error: Exception) -> tuple[Response, int]:
        log.exception("%s %s %s failed", g.get("id"), request.method, request.path)
        return jsonify(error="Something went wrong inside Rush.", request_id=g.get("id")), 500

    return app


def _json() -> Any:
    try:
        body = request.get_json(force=True, silent=True)
    except RecursionError:
        body = None
    if not isinstance(body, dict):
        raise BadRequest(f"The body must be a JSON object, got {request.get_data()[:60]!r}.")
    return body


def _check_credentials(settings: Settings) -> None:
    secret = settings.webhook_secret.get_secret_value()
    if request.path == "/webhook" and secret:
        given = request.headers.get("X-Rush-Secret", "")
        if not hmac.compare_digest(given.encode(), secret.encode()):
            raise Unauthorized(
                "The webhook carries no or a wrong X-Rush-Secret.",
                "Run rush connect to set it in Label Studio.",
            )
        return
    if settings.basic_auth_user and not _known(settings):
        raise Unauthorized(
            "The request carries no or wrong credentials.",
            "Set user and password of the ML backend in Label Studio, or run rush connect.",
        )


def _known(settings: Settings) -> bool:
    """Whether the request carries the token, or user and password; compared in constant time."""
    given, token = request.authorization, settings.token.get_secret_value()
    if given is None:
        return False
    if given.type == "bearer":
        return bool(token) and hmac.compare_digest((given.token or "").encode(), token.encode())
    password = settings.basic_auth_password.get_secret_value()
    right = hmac.compare_digest((given.username or "").encode(), settings.basic_auth_user.encode())
    return hmac.compare_digest((given.password or "").encode(), password.encode()) and right
