"""https servers with a certificate of a company's own authority."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.adapters.label_studio.task_sink import SdkSink
from ml_backend.adapters.processes.backend_client import backend_status
from ml_backend.domain.errors import LabelStudioError, NotReady
from ml_backend.services.connecting.doctor import web

NAMES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an authority of our own (ca.pem) and of a server that it vouches for."""
    folder = tmp_path_factory.mktemp("authority")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    new = "openssl req -newkey rsa:2048 -nodes -subj"
    for command in (
        f"{new} /CN=ours -x509 -days 2 -keyout ca.key -out ca.pem",
        f"{new} /CN=server -keyout server.key -out server.csr",
        "openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names "
        "-out server.pem",
        "mkdir hashed",
        "cp ca.pem hashed/ca.pem",
        "openssl rehash hashed",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def secure(authority: Path) -> Iterator[str]:
    """A server that answers everything with one JSON object, over https."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"id": 7, "projects": [], "task_ids": [1]}'
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *given: object) -> None: ...

    class Server(ThreadingHTTPServer):
        def handle_error(self, *given: object) -> None: ...

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    server = Server(("127.0.0.1", 0), Answers)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(params=["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def trusted(request: pytest.FixtureRequest, authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    place = "hashed" if request.param == "SSL_CERT_DIR" else "ca.pem"
    monkeypatch.setenv(request.param, str(authority / place))


@pytest.mark.usefixtures("trusted")
def test_every_client_of_ours_trusts_the_authority_that_the_environment_names(secure: str) -> None:
    with closing(HttpLabelStudio(secure, "t")) as studio, closing(SdkSink(secure, "t", studio)) as sink:
        assert studio.project(7)["id"] == 7
        assert studio.download(f"{secure}/data/upload/1/a.png")
        assert sink.import_tasks(7, [{"data": {}}]) == [1]
    assert backend_status(secure) == []
    assert web.get(f"{secure}/health").status == 200


def test_nobody_else_is_trusted(secure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    with (
        closing(HttpLabelStudio(secure, "t")) as studio,
        pytest.raises(LabelStudioError, match="certificate"),
    ):
        studio.project(7)
    with pytest.raises(NotReady, match="certificate"):
        backend_status(secure)
    assert web.get(f"{secure}/health").status == 0
