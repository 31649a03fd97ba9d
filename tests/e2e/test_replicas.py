"""Two web processes behind a balancer, one of which is killed while people label."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.adapters.processes.child import Child
from ml_backend.adapters.processes.local_rush import LocalRush
from ml_backend.adapters.processes.servers import LocalLabelStudio
from ml_backend.bootstrap import Container
from ml_backend.operations.projects import connect, import_images
from ml_backend.web.replica_proxy import PASSED_ON
from tests.ports import free_port
from tests.product import Product, label_config, product_settings
from tests.proxy import Proxy


class Replicas:
    """A product with two web processes, each of which may be killed."""

    def __init__(self, product: Product, first: int, second: Child, ports: tuple[int, int]) -> None:
        self.product, self.ports, self._pids = product, ports, (first, second.pid)

    def owner(self, project: int) -> int:
        """0 or 1: which one has the project."""
        for number, port in enumerate(self.ports):
            with contextlib.suppress(httpx.HTTPError):
                reply = httpx.get(f"http://127.0.0.1:{port}/status", headers={PASSED_ON: "1"}, timeout=5)
                if any(row["project"] == project for row in reply.json()["projects"]):
                    return number
        return -1

    def kill(self, number: int) -> None:
        pid = self._pids[number]
        os.killpg(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def replicas(label_studio: LocalLabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    ports = free_port(), free_port()
    balancer = Proxy(*ports)
    settings = product_settings(
        label_studio,
        tmp_path_factory.mktemp("replicas"),
        port=ports[0],
        public_url=f"http://127.0.0.1:{balancer.port}",
        replica_url=f"http://127.0.0.1:{ports[0]}",
    )
    with LocalRush(settings, print) as rush:
        more = {"port": ports[1], "replica_url": f"http://127.0.0.1:{ports[1]}", "redis_url": rush.redis_url}
        environment = {**os.environ, **settings.model_copy(update=more).environment()}
        second = Child("second", settings.data_dir / "second")
        second.start([sys.executable, "-m", "ml_backend.cli", "serve"], environment)
        container = Container(settings.model_copy(update={"redis_url": rush.redis_url}))
        studio = HttpLabelStudio(label_studio.url, label_studio.token)
        product = Product(label_studio, rush, container, studio)
        yield Replicas(product, rush.backend.pid, second, ports)
        second.stop()
        studio.close()
        container.close()
    balancer.close()


def test_two_replicas_are_one_queue_and_a_killed_one_is_replaced(replicas: Replicas, digits: Path) -> None:
    product = replicas.product
    project = connect(product.container, title="Two replicas", label_config=label_config())
    import_images(product.container, project, digits)
    product.wait(project, tasks=200, embedded=200, window=30)
    truth = product.classes(project)

    def label(many: int) -> int:
        """Answers whose next image is the intended one."""
        hits = 0
        task = product.serve(project)
        for _ in range(many):
            product.submit(project, task["id"], truth[task["id"]])
            intended = product.intended(project)
            task = product.serve(project)
            hits += task["id"] in intended
        return hits

    assert label(20) == 20
    status = product.wait(project, generation=1)
    assert status["labelled"] == 20
    first = replicas.owner(project)
    assert first >= 0
    replicas.kill(first)
    killed = time.monotonic()
    for _ in range(3):  # nobody owns the project now: Label Studio keeps the labels
        task = product.serve(project)
        product.submit(project, task["id"], truth[task["id"]])
    product.wait(project, timeout=30, labelled=23)
    print(f"taken over and caught up after {time.monotonic() - killed:.1f} s")
    assert replicas.owner(project) == 1 - first
    assert label(10) == 10
    assert len(product.answers(project)) == 33
