"""The web process: gunicorn with one worker, which owns the embedded index, and threads."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from ml_backend.bootstrap import Container
from ml_backend.domain.errors import BadRequest
from ml_backend.services.serving.project import ProjectPorts
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings
from ml_backend.web.app import create_app

THREADS = 8


def open_projects(settings: Settings) -> Projects:
    """Open the projects over all adapters of the web process; ``start`` begins their maintenance."""
    container = Container(settings)
    backend = ProjectPorts(
        settings,
        container.state,
        container.artifacts,
        container.features_of,
        container.jobs,
        container.studio,
        container.index,
    )
    return Projects(backend, container.origin, container.leases)


class Server(BaseApplication):  # type: ignore[misc]
    """Gunicorn with one process, which owns the embedded index, and threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.projects: Projects | None = None
        super().__init__()

    def load_config(self) -> None:
        """Configure gunicorn from our settings."""
        options: dict[str, Any] = {
            "bind": f"{self.settings.host}:{self.settings.port}",
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
        self.projects = open_projects(self.settings)
        self.projects.start()
        logging.getLogger(__name__).info("Rush answers on %s", self.settings.backend_url)
        return create_app(self.settings, self.projects)


def require_auth_if_public(settings: Settings) -> None:
    """BadRequest where the backend would listen beyond this machine and let anybody in."""
    try:
        local = ip_address(settings.host).is_loopback
    except ValueError:
        local = settings.host == "localhost"
    lacking = [
        name
        for name, value in (
            ("RUSH_BASIC_AUTH_USER", settings.basic_auth_user),
            ("RUSH_BASIC_AUTH_PASSWORD", settings.basic_auth_password.get_secret_value()),
            ("RUSH_WEBHOOK_SECRET", settings.webhook_secret.get_secret_value()),
        )
        if not value
    ]
    if lacking and not local:
        raise BadRequest(
            f"RUSH_HOST={settings.host} would let everybody in who can reach this machine.",
            f"Set {', '.join(lacking)}, then run rush connect, or listen on 127.0.0.1.",
        )


def serve(settings: Settings) -> None:
    """Run the web process until it is told to stop; BadRequest as ``require_auth_if_public`` says."""
    require_auth_if_public(settings)
    Server(settings).run()
