"""The web host: Label Studio's requests in, answers out. Imports no torch."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Flask, g, request
from werkzeug.exceptions import RequestEntityTooLarge

from ml_backend.domain.deadline import PROMPT, within
from ml_backend.ports import Replicas
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings
from ml_backend.web import problems, replica_proxy, routes
from ml_backend.web.auth import check_credentials, check_sender

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

REQUEST_SECONDS = 8.0
"""How long a request other than a webhook may wait for others."""


def create_app(settings: Settings, projects: Projects, replicas: Replicas | None = None) -> Flask:
    """Build the Flask app over the projects; the caller starts and stops their maintenance loop."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = int(settings.max_body_mb * 1e6)
    app.json.sort_keys = False  # type: ignore[attr-defined]

    @app.before_request
    def admit() -> None:
        g.started, g.id = time.perf_counter(), uuid.uuid4().hex[:12]
        if request.path == "/health":
            return  # open to everybody, so nothing of it is read
        check_sender(settings)
        check_credentials(settings)
        # A body in chunks doesn't say how long it is, and werkzeug cuts it off without a word.
        if request.content_length is None and len(request.get_data()) >= app.config["MAX_CONTENT_LENGTH"]:
            raise RequestEntityTooLarge

    answer = app.wsgi_app

    def in_time(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Each request in the time that Label Studio gives it."""
        with within(PROMPT if environ["PATH_INFO"] == "/webhook" else REQUEST_SECONDS):
            return answer(environ, start_response)

    app.wsgi_app = in_time  # type: ignore[method-assign]
    elsewhere = list if replicas is None else replica_proxy.install(app, projects, replicas)
    app.register_blueprint(routes.routes(projects, elsewhere))
    problems.install(app, settings, projects)
    return app
