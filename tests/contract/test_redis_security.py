"""Redis with a password, and behind TLS: a real server, and a TLS terminator in front (ours has no TLS)."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from ml_backend.adapters.processes.servers import redis_executable
from ml_backend.adapters.redis.jobs import RqJobs
from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.errors import StoreError
from ml_backend.domain.events import StrategyChosen
from ml_backend.domain.model import ProjectRef
from tests.ports import free_port
from tests.proxy import Proxy

PASSWORD = "secret-secret"
REF = ProjectRef("http://studio", 1)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server that asks for a password."""
    number = free_port()
    folder = str(tmp_path_factory.mktemp("locked"))
    command = [redis_executable(), "--port", str(number), "--requirepass", PASSWORD, "--dir", folder]
    with subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL) as server:
        with Redis(port=number, password=PASSWORD) as client:
            for _ in range(100):
                with contextlib.suppress(RedisError):
                    client.ping()
                    break
                time.sleep(0.05)
        yield number
        server.terminate()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def tls_port(port: int, certificate: tuple[Path, Path]) -> Iterator[int]:
    """What stands in front of the server and speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    proxy = Proxy(port, tls=context)
    yield proxy.port
    proxy.close()


def test_state_events_and_jobs_work_behind_password_and_tls(
    tls_port: int, certificate: tuple[Path, Path]
) -> None:
    url = f"rediss://:{PASSWORD}@localhost:{tls_port}/0?ssl_ca_certs={certificate[0]}"
    state, jobs = RedisState(url), RqJobs(url)
    state.set_options(REF, strategy="margin")
    assert state.options(REF)["strategy"] == "margin"
    assert list(state.listen(0.3)) == []
    state.publish(REF, StrategyChosen())
    assert [event for _, event in state.listen(1.0)][:1] == [StrategyChosen()]
    jobs.enqueue("train", REF)
    state.close()
    jobs.close()


def test_a_certificate_that_nobody_vouches_for_is_refused(tls_port: int) -> None:
    with (
        contextlib.closing(RedisState(f"rediss://:{PASSWORD}@localhost:{tls_port}/0")) as state,
        pytest.raises(StoreError) as caught,
    ):
        state.options(REF)
    assert PASSWORD not in str(caught.value)


def test_a_wrong_password_is_named_without_being_shown(port: int) -> None:
    with (
        contextlib.closing(RedisState(f"redis://:wrong-wrong@127.0.0.1:{port}/0")) as state,
        pytest.raises(StoreError, match=f"127.0.0.1:{port}") as caught,
    ):
        state.options(REF)
    assert "wrong-wrong" not in str(caught.value)
