"""Clients that stop in the middle: they cost no thread, are closed in the end, and nobody waits for them."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from flask import Flask, request

from ml_backend.domain.errors import BadRequest
from ml_backend.web import connections
from ml_backend.web.connections import Server
from tests.ports import free_port
from tests.waiting import until

LARGE = 8_000_000
"""More than the system's own buffers take between a server and one that doesn't read."""
HALF = {
    "headers": b"POST /echo HTTP/1.1\r\nHost: localhost\r\n",
    "body": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{",
    "chunks": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "nothing": b"",
    "idle": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no reader": b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


class Running:
    """A server of a test's own with an app whose ``/wait`` waits until it is told to go on."""

    def __init__(self) -> None:
        self.port, self.go = free_port(), threading.Event()
        self.url = f"http://127.0.0.1:{self.port}"
        app = Flask(__name__)
        app.add_url_rule("/health", "health", lambda: "up")
        app.add_url_rule("/echo", "echo", lambda: request.get_data(), methods=["POST"])
        app.add_url_rule("/large", "large", lambda: b"x" * LARGE)
        app.add_url_rule("/wait", "wait", lambda: str(self.go.wait(60)))
        self.server = Server(app, "127.0.0.1", self.port, 100_000)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        self.sockets: list[socket.socket] = []

    def connect(self, kind: str, count: int) -> list[socket.socket]:
        made = [socket.socket() for _ in range(count)]
        self.sockets += made
        for one in made:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.settimeout(60)
            one.connect(("127.0.0.1", self.port))
            one.sendall(HALF[kind])
        return made

    def health(self) -> str:
        return httpx.get(f"{self.url}/health", timeout=10, trust_env=False).text

    def close(self) -> None:
        self.go.set()
        self.server.stop()
        self.thread.join(60)
        for one in self.sockets:
            one.close()


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SILENT_SECONDS", "WHOLE_SECONDS", "IDLE_SECONDS"):
        monkeypatch.setattr(connections, name, 0.5)


def read_to_the_end(one: socket.socket) -> bytes:
    """What comes until the other side closes."""
    found = b""
    try:
        while more := one.recv(65536):
            found += more
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("count", [8, 64])
def test_however_many_stop_in_the_middle_the_next_is_answered(
    running: Running, kind: str, count: int
) -> None:
    running.connect(kind, count)
    assert running.health() == "up"


@pytest.mark.parametrize("kind", [kind for kind in HALF if kind != "no reader"])
def test_more_than_there_is_room_for_make_room_for_the_next(running: Running, kind: str) -> None:
    running.connect(kind, connections.CONNECTIONS + 100)
    assert running.health() == "up"


@pytest.mark.parametrize("kind", HALF)
def test_who_stops_in_the_middle_is_closed(running: Running, impatient: None, kind: str) -> None:
    [one] = running.connect(kind, 1)
    if kind == "no reader":
        time.sleep(2)
    got = read_to_the_end(one)
    assert len(got) < LARGE
    assert (b"200 OK" in got) == (kind in ("idle", "no reader"))


def test_who_trickles_is_closed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WHOLE_SECONDS", 1.0)
    [one] = running.connect("headers", 1)
    one.settimeout(0.1)

    def trickle() -> bool:
        try:
            one.sendall(b"X: y\r\n")
            return one.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    assert until(trickle)


def test_while_all_threads_wait_health_is_answered(running: Running) -> None:
    waiting = running.connect("nothing", 2 * connections.THREADS)
    for one in waiting:
        one.sendall(b"GET /wait HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert running.health() == "up"
    running.go.set()
    assert all(read_to_the_end(one).endswith(b"True") for one in waiting)


def test_a_request_that_a_thread_has_is_finished_when_the_server_stops(running: Running) -> None:
    [one] = running.connect("nothing", 1)
    one.sendall(b"GET /wait HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert running.health() == "up"
    running.server.stop()
    threading.Timer(0.5, running.go.set).start()
    assert read_to_the_end(one).endswith(b"True")
    running.thread.join(30)
    assert not running.thread.is_alive()


@pytest.mark.parametrize("content", [b"x" * 100_001, [b"x" * 1000] * 300], ids=["long", "chunks"])
def test_a_body_over_the_limit_is_a_413_that_names_the_setting(running: Running, content: Any) -> None:
    body = content if isinstance(content, bytes) else iter(content)
    answer = httpx.post(f"{running.url}/echo", content=body, timeout=30, trust_env=False)
    assert answer.status_code == 413
    assert answer.json()["code"] == "too_large"
    assert "RUSH_MAX_BODY_MB" in answer.json()["hint"]


def test_a_body_at_the_limit_is_read_whole_in_one_piece_or_in_chunks(running: Running) -> None:
    for body in (b"x" * 100_000, iter([b"x" * 10_000] * 9)):
        answer = httpx.post(f"{running.url}/echo", content=body, trust_env=False)
        assert answer.status_code == 200
        assert len(answer.content) >= 90_000


def test_a_body_that_says_it_is_huge_is_refused_before_it_comes(running: Running) -> None:
    [one] = running.connect("nothing", 1)
    one.sendall(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
    assert b" 413 " in read_to_the_end(one)


def test_who_waits_for_leave_to_send_a_body_gets_it(running: Running) -> None:
    [one] = running.connect("nothing", 1)
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n"
    one.sendall(head + b"Content-Length: 4\r\n\r\n")
    assert one.recv(100).startswith(b"HTTP/1.1 100 ")
    one.sendall(b"body")
    assert read_to_the_end(one).endswith(b"body")


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
        b"POST /echo HTTP/1.1\r\nContent-Length: -4\r\n\r\nbody",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nbody",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET / HTTP/1.1\r\nX : y\nZ: a\r\n\r\n",
    ],
)
def test_what_is_no_request_is_an_error_in_json(running: Running, sent: bytes) -> None:
    [one] = running.connect("nothing", 1)
    one.sendall(sent)
    head, _, body = read_to_the_end(one).partition(b"\r\n\r\n")
    assert head.split()[1][:1] in (b"4", b"5")
    assert json.loads(body)["error"]


def test_a_taken_port_is_named(running: Running) -> None:
    with pytest.raises(BadRequest, match=rf"127\.0\.0\.1, port {running.port}: Address already in use"):
        Server(lambda *_: [], "127.0.0.1", running.port, 1)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0"])
def test_it_listens_where_it_is_told_to(host: str) -> None:
    port = free_port()
    server = Server(Flask(__name__), host, port, 1)
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    server.close()


def test_a_host_that_is_not_this_machine_s_is_named() -> None:
    with pytest.raises(BadRequest, match=r"192\.0\.2\.1.*RUSH_HOST"):
        Server(Flask(__name__), "192.0.2.1", free_port(), 1)
