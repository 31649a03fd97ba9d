"""What people meet while Redis, Label Studio, Qdrant or a client hang: seconds of everything they wait for.

PYTHONPATH=. python bench/hanging.py [--images 2000] [--seconds 12]

A real backend process and a real Redis; a stand-in for Label Studio, which keeps predictions and can stop
answering; for Qdrant, a server that takes connections and never answers. Every half second somebody submits
in one project and in another one, opens a task, and asks /health; once, the strategy is switched.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from common import report
from stack import label_config
from start import prepare

from ml_backend.adapters.processes.child import free_port
from ml_backend.adapters.processes.servers import LocalRedis
from ml_backend.bootstrap import Container
from ml_backend.domain.events import StrategyChosen
from ml_backend.settings import Settings

EVERY = 0.5
CLIENTS = 8
"""Connections that send half of a request."""


class Studio(ThreadingHTTPServer):
    """Label Studio's side of predictions, as far as the backend asks for it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Studio)
        self.answers = threading.Event()
        self.answers.set()
        self.rows: dict[int, dict[str, Any]] = {}
        self.number = count(1)


class _Studio(BaseHTTPRequestHandler):
    server: Studio
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or "null")
        self.server.answers.wait()
        found = json.dumps(self._answer(body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _answer(self, body: Any) -> Any:
        rows = self.server.rows
        if "/import/predictions" in self.path:
            for row in body:
                self._keep(row | {"project": int(self.path.split("/")[3])})
            return {"created": len(body)}
        if self.command == "POST" and self.path.startswith("/api/predictions"):
            return self._keep(body)
        if self.command == "PATCH" and (number := int(self.path.split("/")[3])) in rows:
            rows[number] |= body
            return rows[number]
        if self.path.startswith("/api/predictions"):
            asked = dict(part.split("=") for part in self.path.partition("?")[2].split("&"))
            return [row for row in rows.values() if all(str(row[k]) == v for k, v in asked.items())]
        return {"id": 1}

    def _keep(self, row: dict[str, Any]) -> dict[str, Any]:
        number = next(self.server.number)
        self.server.rows[number] = {"model_version": "rush", **row, "id": number}
        return self.server.rows[number]

    def log_message(self, *_: object) -> None: ...

    def handle(self) -> None:
        with suppress(ConnectionError):  # who asked does not wait any more
            super().handle()


@contextmanager
def backend(settings: Settings) -> Iterator[None]:
    """A backend process that has loaded both projects."""
    rush = [sys.executable, "-m", "ml_backend.cli", "serve"]
    process = subprocess.Popen(rush, env=os.environ | settings.environment())
    try:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            try:
                rows = httpx.get(f"{settings.backend_url}/status", timeout=10).json()["projects"]
                if len(rows) == 2 and all(row["window"] for row in rows):
                    break
            except (httpx.HTTPError, KeyError, ValueError):
                pass
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(60)


class People:
    """Who waits for the backend."""

    def __init__(self, url: str, classes: list[str], tasks: Iterator[int]) -> None:
        self.url, self.classes, self.tasks = url, classes, tasks
        self.client = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None))

    def submit(self, project: int) -> int:
        task = next(self.tasks)
        choice = {"choices": [self.classes[task % len(self.classes)]]}
        result = [{"type": "choices", "from_name": "label", "to_name": "image", "value": choice}]
        annotation = {"id": task, "task": task, "completed_by": 1, "result": result, "lead_time": 1.0}
        body = {"action": "ANNOTATION_CREATED", "project": {"id": project}, "annotation": annotation}
        return self.client.post(f"{self.url}/webhook", json=body).status_code

    def open_task(self) -> int:
        body = {"tasks": [{"id": next(self.tasks), "data": {"image": "/x.jpg"}}], "project": "1.1"}
        return self.client.post(f"{self.url}/predict", json=body).status_code

    def health(self) -> int:
        return self.client.get(f"{self.url}/health").status_code


def watch(people: People, seconds: float) -> dict[str, Any]:
    """The longest wait for each request, in seconds, and how many were answered with a success."""
    asks: dict[str, Callable[[], int]] = {
        "submit": lambda: people.submit(1),
        "submit in another project": lambda: people.submit(2),
        "open a task": people.open_task,
        "health": people.health,
    }
    waits: dict[str, list[tuple[int, float]]] = {name: [] for name in asks}

    def timed(name: str) -> None:
        began = time.monotonic()
        try:
            status = asks[name]()
        except httpx.HTTPError:
            status = 0
        waits[name].append((status, time.monotonic() - began))

    with ThreadPoolExecutor(64) as pool:
        for _ in range(round(seconds / EVERY)):
            for name in asks:
                pool.submit(timed, name)
            time.sleep(EVERY)
    return {
        name: {
            "longest": round(max(wait for _, wait in rows), 2),
            "ok": f"{sum(status == 200 for status, _ in rows)} of {len(rows)}",
        }
        for name, rows in waits.items()
    }


def switch(container: Container, url: str, name: str, seconds: float = 30.0) -> float | None:
    """Seconds until the backend follows another strategy; None where it doesn't in time."""
    ref, began = container.ref(1), time.monotonic()
    container.state.set_options(ref, strategy=name)
    container.state.publish(ref, StrategyChosen())
    while time.monotonic() - began < seconds:
        with suppress(httpx.HTTPError):
            rows = httpx.get(f"{url}/status", timeout=5).json().get("projects", [])
            if any(row["project"] == 1 and row["strategy"] == name for row in rows):
                return round(time.monotonic() - began, 2)
        time.sleep(0.05)
    return None


def half_sent(port: int) -> list[socket.socket]:
    """Connections that send half of a request's headers, or of its body."""
    found = []
    for n in range(CLIENTS):
        client = socket.create_connection(("127.0.0.1", port))
        body = "Content-Length: 1000\r\n\r\n{" if n % 2 else ""
        client.sendall(f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{body}".encode())
        found.append(client)
    return found


def main() -> None:
    """Hang one part after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = [f"class {n}" for n in range(10)]
    figures: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rush-bench-")))
        redis, studio = LocalRedis(folder / "redis"), Studio()
        redis.start()
        stack.callback(redis.stop)
        threading.Thread(target=studio.serve_forever, daemon=True).start()
        settings = Settings(
            data_dir=folder / "rush",
            redis_url=redis.url,
            label_studio_url=f"http://127.0.0.1:{studio.server_port}",
            label_studio_api_key="0" * 40,
            port=free_port(),
            sync_seconds=0,
            log_level="ERROR",
        )
        container = Container(settings)
        prepare(container, options.images, 200, 10)
        container.state.set_options(container.ref(2), label_config=label_config(names))
        tasks = container.state.tasks(container.ref(1))
        container.state.set_tasks(container.ref(2), tasks)
        people = People(settings.backend_url, names, iter(range(201, options.images + 1)))
        pid = redis.pid
        with backend(settings):
            figures["nothing"] = watch(people, options.seconds)
            figures["nothing"]["strategy heard"] = switch(container, settings.backend_url, "margin")
            studio.answers.clear()
            time.sleep(1)
            figures["Label Studio"] = watch(people, options.seconds)
            figures["Label Studio"]["strategy heard"] = switch(container, settings.backend_url, "rush")
            studio.answers.set()
            os.kill(pid, signal.SIGSTOP)
            figures["Redis"] = watch(people, options.seconds)
            os.kill(pid, signal.SIGCONT)
            time.sleep(3)
            held = half_sent(settings.port)
            figures[f"{CLIENTS} clients"] = watch(people, options.seconds)
            figures[f"{CLIENTS} clients"]["strategy heard"] = switch(
                container, settings.backend_url, "margin"
            )
            for client in held:
                client.close()
        with closing(socket.create_server(("127.0.0.1", 0), backlog=200)) as silent:
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            with backend(settings.model_copy(update={"qdrant_url": address})):
                figures["Qdrant"] = watch(people, options.seconds)
                figures["Qdrant"]["strategy heard"] = switch(container, settings.backend_url, "rush")
    report("hanging", figures, options.out)


if __name__ == "__main__":
    main()
