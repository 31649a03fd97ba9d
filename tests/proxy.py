"""What stands between a client and servers in tests: a balancer, or a TLS terminator."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from itertools import count


class Proxy:
    """Gives each connection to the next of the ports that answers; speaks TLS where a context is given."""

    def __init__(self, *ports: int, tls: ssl.SSLContext | None = None) -> None:
        self._ports, self._tls, self._turn = ports, tls, count()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._join, args=(client, next(self._turn)), daemon=True).start()

    def _join(self, client: socket.socket, turn: int) -> None:
        with contextlib.suppress(OSError), client:
            outer = client if self._tls is None else self._tls.wrap_socket(client, server_side=True)
            server = self._server(turn)
            if server is None:
                return
            with outer, server:
                there = threading.Thread(target=_pipe, args=(outer, server), daemon=True)
                there.start()
                _pipe(server, outer)
                there.join(60)

    def _server(self, turn: int) -> socket.socket | None:
        for port in (self._ports[(turn + n) % len(self._ports)] for n in range(len(self._ports))):
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.0.1", port))
        return None

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
