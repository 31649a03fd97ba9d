"""Errors as JSON: a sentence, its code, the field, the next step and a request id; never a traceback."""

from __future__ import annotations

import logging

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from ml_backend.domain.errors import BadRequest, NotFound, RushError, StoreError, TooLarge
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings

log = logging.getLogger(__name__)


def install(app: Flask, settings: Settings, projects: Projects) -> None:
    """Answer every error that a request ends in; where a store failed the projects will be synced."""

    @app.errorhandler(RushError)
    def rush_error(error: RushError) -> tuple[Response, int]:
        level = logging.ERROR if error.status >= 500 else logging.WARNING
        log.log(level, "%s %s %s: %s", g.get("id"), request.method, request.path, error)
        if isinstance(error, StoreError):
            projects.missed()
        return _answer(error, error.status)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> tuple[Response, int]:
        known: RushError = BadRequest(error.description or error.name)
        if error.code == 413:
            known = too_large(settings.max_body_mb)
        elif error.code == 404:
            known = NotFound(f"There is no {request.path} here.", "See docs/protocol.md.")
        known.status = error.code or 500
        return rush_error(known)

    @app.errorhandler(Exception)
    def failure(error: Exception) -> tuple[Response, int]:
        log.exception("%s %s %s failed", g.get("id"), request.method, request.path)
        return _answer(RushError("Something went wrong inside Rush."), 500)


def too_large(megabytes: float) -> TooLarge:
    """A body that is over the limit."""
    return TooLarge(f"The request is larger than {megabytes:g} MB.", "Raise RUSH_MAX_BODY_MB.")


def described(error: RushError, request_id: str | None = None) -> dict[str, str | None]:
    """The error as clients get it."""
    body = {"error": error.message, "code": error.code, "hint": error.hint, "request_id": request_id}
    return body | ({"field": error.field} if error.field else {})


def _answer(error: RushError, status: int) -> tuple[Response, int]:
    return jsonify(described(error, g.get("id"))), status
