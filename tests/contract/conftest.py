from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.adapters.processes.servers import LocalLabelStudio
from ml_backend.bootstrap import Container
from ml_backend.domain.model import ProjectRef, TaskId
from ml_backend.services.connecting.connect import connect
from ml_backend.services.connecting.label_studio_setup import webhook_url
from ml_backend.services.serving.loading import ProjectPorts
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings
from ml_backend.web.app import create_app
from tests.ports import free_port

CONFIG = """<View><Image name="image" value="$image"/>
<Choices name="choice" toName="image"><Choice value="cat"/><Choice value="dog"/></Choices></View>"""


@dataclass
class Rush:
    """A running web host over real parts, without workers and keeper: nothing happens by itself."""

    settings: Settings
    container: Container
    studio: HttpLabelStudio

    @property
    def state(self) -> Any:
        return self.container.state

    def project(self, **fields: Any) -> ProjectRef:
        body = {"title": "Cats", "label_config": CONFIG} | fields
        return self.container.ref(self.studio.call("POST", "/api/projects/", json=body)["id"])

    def connect(self, ref: ProjectRef, **options: Any) -> list[Any]:
        return connect(ref, self.studio, self.state, self.settings, **options)

    def fill(self, ref: ProjectRef, scores: list[float], images: list[str] | None = None) -> list[TaskId]:
        """Tasks whose predictions have these scores, known to the shared state as the window."""
        urls = images or [f"/data/upload/{n}.png" for n in range(len(scores))]
        bodies = [
            {"data": {"image": url}, "predictions": [{"score": score, "result": [], "model_version": "rush"}]}
            for url, score in zip(urls, scores, strict=True)
        ]
        tasks = self.studio.import_tasks(ref.id, bodies)
        rows = {row.task: (row.id, float(row.score or 0)) for row in self.studio.predictions(ref.id)}
        self.state.set_window(ref, rows)
        return tasks

    def webhook(self, ref: ProjectRef) -> dict[str, Any]:
        url = webhook_url(self.settings.backend_url)
        rows = self.studio.call("GET", "/api/webhooks/", params={"project": ref.id})
        return next(row for row in rows if row["url"] == url)

    def backend(self, ref: ProjectRef) -> dict[str, Any]:
        return dict(self.studio.call("GET", "/api/ml/", params={"project": ref.id})[0])


class NoNeighbours:
    """The index of a project none of whose images is embedded."""

    def build(self, *args: Any) -> None: ...
    def upsert(self, *args: Any) -> None: ...
    def mark(self, *args: Any) -> None: ...
    def delete(self, *args: Any) -> None: ...
    def close(self) -> None: ...
    def __len__(self) -> int:
        return 0

    def vectors(self, *args: Any) -> dict[int, Any]:
        return {}


@contextmanager
def running(settings: Settings) -> Iterator[Rush]:
    container = Container(settings)

    def index(project: ProjectRef) -> Any:
        return NoNeighbours()  # the embedded engine is tested on its own

    backend = ProjectPorts(
        settings,
        container.state,
        container.artifacts,
        container.features_of,
        container.jobs,
        container.studio,
        index,
    )
    projects = Projects(backend, container.origin)
    app = create_app(settings, projects)
    server = make_server(settings.host, settings.port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    studio = HttpLabelStudio(container.origin, settings.label_studio_api_key.get_secret_value())
    try:
        yield Rush(settings, container, studio)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        projects.stop()
        studio.close()
        container.studio.close()


@pytest.fixture(scope="module")
def start_rush(
    label_studio: LocalLabelStudio, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Rush]]:
    """Start web hosts on ports of their own, with settings of choice."""
    with ExitStack() as stack:

        def start(**options: Any) -> Rush:
            folder: Path = tmp_path_factory.mktemp("rush")
            fields: dict[str, Any] = {
                "data_dir": folder,
                "redis_url": redis_url,
                "label_studio_url": label_studio.url,
                "label_studio_api_key": label_studio.token,
                "port": free_port(),
            }
            settings = Settings(**fields | options)
            return stack.enter_context(running(settings))

        yield start


@pytest.fixture(scope="module")
def rush(start_rush: Callable[..., Rush]) -> Rush:
    return start_rush()
