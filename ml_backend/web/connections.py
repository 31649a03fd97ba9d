"""Connections of clients: no slow, silent or half-sent one costs a thread, and each has a deadline.

One loop reads requests whole before a thread gets them, and sends answers after the thread has made them.
"""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher

from ml_backend.domain.errors import BadRequest, RushError, TooLarge
from ml_backend.web import problems

THREADS = 8
SILENT_SECONDS = 10.0
"""How long a client may stop in the middle: of its headers, of its body, of reading its answer."""
WHOLE_SECONDS = 60.0
"""How long a request may take to arrive, and its answer to be read, however steadily it trickles."""
IDLE_SECONDS = 75.0
"""How long a connection is kept for a next request."""
CONNECTIONS = 200
"""Open connections; one more closes the one that has been silent for longest."""
HEADER_BYTES = 64 * 1024
EXEMPT = ("/health", "/")
"""Answered by a thread of their own, whatever all the others wait for."""


class Refusal(ErrorTask):  # type: ignore[misc]
    """The answer to what is no request, as JSON like every other error."""

    def execute(self) -> None:
        """Write it."""
        error = self.request.error
        known: RushError = BadRequest(f"{error.reason}: {error.body}.")
        if error.code == TooLarge.status:
            known = problems.too_large((self.channel.adj.max_request_body_size - 1) / 1e6)
        elif error.code >= 500:
            known = RushError("Something went wrong inside Rush.")
        body = json.dumps(problems.described(known)).encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Connection(HTTPChannel):  # type: ignore[misc]
    """One client's connection, and since when its present request goes on."""

    error_task_class = Refusal
    began = 0.0

    def received(self, data: bytes) -> bool:
        """Take in what came."""
        if self.request is None and not self.requests:
            self.began = time.time()
        return bool(super().received(data))

    def handle_close(self) -> None:
        """Let go of what has come so far, too."""
        if self.request is not None:
            self.request.close()
        super().handle_close()

    def overdue(self, now: float) -> bool:
        """Whether the client had its time."""
        silent = now - float(self.last_activity)
        if self.total_outbufs_len or self.request is not None:  # it doesn't read, or doesn't go on sending
            return silent > SILENT_SECONDS or (now - self.began > WHOLE_SECONDS and not self.requests)
        if self.requests:
            return False  # we are the slow ones
        return silent > (IDLE_SECONDS if self.began else SILENT_SECONDS)


class Listener(TcpWSGIServer):  # type: ignore[misc]
    """Accepts connections at one address."""

    channel_class = Connection

    def __init__(self, *arguments: Any, urgent: ThreadedTaskDispatcher, **more: Any) -> None:
        self.urgent = urgent
        super().__init__(*arguments, **more)

    def maintenance(self, now: float) -> None:
        """Close what is overdue; called every second."""
        for connection in self.active_channels.values():
            if connection.overdue(now):
                connection.will_close = True

    def handle_accept(self) -> None:
        """Take one more connection in, for which another one may have to go."""
        if len(self.active_channels) >= CONNECTIONS:
            waiting = [it for it in self.active_channels.values() if not it.requests]
            if waiting:
                min(waiting, key=lambda it: it.last_activity).handle_close()
        super().handle_accept()

    def add_task(self, task: Connection) -> None:
        """Hand a whole request to a thread."""
        exempt = not task.requests[0].error and task.requests[0].path in EXEMPT
        (self.urgent if exempt else self.task_dispatcher).add_task(task)


class Server:
    """Answers on host and port with the application's answers; binds at once, answers while it ``run``s.

    BadRequest where nothing can listen there. ``max_body`` is the largest body in bytes.
    """

    def __init__(self, application: Callable[..., Any], host: str, port: int, max_body: int) -> None:
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # eight at once are no news
        logging.getLogger("waitress").setLevel(logging.WARNING)
        self._map: dict[int, Any] = {}
        self._stopping = False
        self._threads, self._urgent = ThreadedTaskDispatcher(), ThreadedTaskDispatcher()
        options: dict[str, Any] = {
            "host": host,
            "port": port,
            "connection_limit": 10 * CONNECTIONS,
            "cleanup_interval": 1,
            "asyncore_use_poll": True,
            "max_request_header_size": HEADER_BYTES,
            "max_request_body_size": max_body + 1,
            "log_socket_errors": False,
            "ident": None,
        }
        try:
            adjustments = Adjustments(**options)
            self._listen(application, adjustments)
        except (OSError, ValueError) as error:
            self.close()
            raise BadRequest(
                f"Nothing can listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}.",
                "Stop what listens there, or set RUSH_HOST and RUSH_PORT to others.",
            ) from None

    def _listen(self, application: Callable[..., Any], adjustments: Adjustments) -> None:
        threads = {"dispatcher": self._threads, "urgent": self._urgent}
        left = len(adjustments.listen)
        for place in adjustments.listen:  # several where the host is a name
            left -= 1
            try:
                Listener(application, self._map, adj=adjustments, sockinfo=place, **threads)
                left = len(adjustments.listen)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL or not left:  # localhost may be ::1, without IPv6
                    raise

    def run(self) -> None:
        """Answer until somebody says ``stop``; what the threads have begun by then is finished."""
        self._threads.set_thread_count(THREADS)
        self._urgent.set_thread_count(1)
        try:
            while not self._stopping:
                wasyncore.poll2(1.0, self._map)
        finally:
            self.close()

    def stop(self) -> None:
        """Let ``run`` return; for other threads and for signals."""
        self._stopping = True
        for place in list(self._map.values()):
            if isinstance(place, Listener):
                place.pull_trigger()

    def close(self) -> None:
        """Take no more requests, and wait some seconds for the threads."""
        self._threads.shutdown()
        self._urgent.shutdown()
        for place in list(self._map.values()):
            (place.handle_close if isinstance(place, Connection) else place.close)()
