"""The web process: gunicorn with one worker, which owns the embedded index, and threads."""

from __future__ import annotations

import logging
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from ml_backend.bootstrap import Container
from ml_backend.services.serving.registry import Projects
from ml_backend.web.app import create_app
from ml_backend.web.auth import require_auth_if_public

THREADS = 8


class Server(BaseApplication):  # type: ignore[misc]
    """Gunicorn with one process, which owns the embedded index, and threads."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.projects: Projects | None = None
        super().__init__()

    def load_config(self) -> None:
        """Configure gunicorn from our settings."""
        settings = self.container.settings
        options: dict[str, Any] = {
            "bind": f"{settings.host}:{settings.port}",
            "workers": 1,
            "worker_class": "gthread",
            "threads": THREADS,
            "timeout": 0,  # loading 100,000 tasks takes longer than gunicorn's patience
            "graceful_timeout": 5,
            "keepalive": 75,
            "control_socket_disable": True,
            "accesslog": None,
            "loglevel": "warning",
            "worker_exit": lambda server, worker: self.projects.stop() if self.projects else None,
        }
        for name, value in options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Flask:
        """Build the app inside the worker process, so that it owns its threads and the index."""
        self.projects = self.container.open_projects()
        self.projects.start()
        logging.getLogger(__name__).info("Rush answers on %s", self.container.settings.backend_url)
        return create_app(self.container.settings, self.projects, self.container.replicas)


def serve(container: Container) -> None:
    """Run the web process until it is told to stop; BadRequest as ``require_auth_if_public`` says."""
    require_auth_if_public(container.settings)
    Server(container).run()
