from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from ml_backend.adapters.redis.state import RedisState
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings
from ml_backend.web.app import create_app
from tests.fakes import World


@pytest.fixture
def world(state: RedisState) -> World:
    return World(state)


@pytest.fixture
def client_of(world: World) -> Iterator[Callable[..., FlaskClient]]:
    """Clients of a web app over the world's ports, with these settings."""
    opened: list[Projects] = []

    def made(**settings: Any) -> FlaskClient:
        opened.append(Projects(world.ports, "http://studio"))
        return create_app(Settings(_env_file=None, **settings), opened[-1]).test_client()

    yield made
    for projects in opened:
        projects.stop()
