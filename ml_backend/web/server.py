"""The web process: one, which owns the embedded index, its connections and its threads."""

from __future__ import annotations

import logging
import os
import signal
import threading

from ml_backend.bootstrap import Container
from ml_backend.web.app import create_app
from ml_backend.web.auth import require_auth_if_public
from ml_backend.web.connections import Server

STOP_SECONDS = 12.0
"""After which a process that was told to stop ends, whatever still hangs in it."""


def serve(container: Container) -> None:
    """Run the web process until it is told to stop.

    BadRequest as ``require_auth_if_public`` says, and where nothing can listen at host and port.
    """
    settings = container.settings
    require_auth_if_public(settings)
    projects = container.open_projects()
    app = create_app(settings, projects, container.replicas)
    server = Server(app, settings.host, settings.port, app.config["MAX_CONTENT_LENGTH"])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    projects.start()
    logging.getLogger(__name__).info("Rush answers on %s", settings.backend_url)
    try:
        server.run()
    finally:
        last_resort = threading.Timer(STOP_SECONDS, os._exit, [1])
        last_resort.daemon = True
        last_resort.start()
        projects.stop()
