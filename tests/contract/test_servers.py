"""Real local servers: they start, keep their data, end when told, and say what is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from ml_backend.adapters.processes.local_rush import LocalRush
from ml_backend.adapters.processes.servers import (
    LocalLabelStudio,
    LocalRedis,
    ServerError,
    port_is_free,
)
from ml_backend.settings import Settings
from tests.ports import free_port
from tests.waiting import until


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, which a unix socket needs."""
    path = Path(tempfile.mkdtemp(prefix="rush"))
    yield path
    shutil.rmtree(path)


def ask(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True)


def test_redis_keeps_its_data_over_a_restart(folder: Path) -> None:
    server = LocalRedis(folder)
    lines: list[str] = []
    try:
        server.start(lines.append)
        assert lines == ["Starting Redis …"]
        assert server.url == f"unix://{folder.resolve()}/redis.sock"
        with ask(server.url) as client:
            client.set("word", "kept")
        server.stop()
        server.stop()
        assert not server.running
        server.start()
        with ask(server.url) as client:
            assert client.get("word") == "kept"
    finally:
        server.stop()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("below", ["long" * 30 + "/a b", 'a "quoted" one' + "x" * 90, "ü" * 60])
def test_redis_has_a_private_socket_where_the_path_is_too_long_for_one(folder: Path, below: str) -> None:
    server = LocalRedis(folder / below)
    for _ in range(2):
        try:
            server.start()
            assert server.url.startswith("unix://")
            assert LocalRedis.url_of(folder / below) == server.url
            with ask(server.url) as client:
                assert client.ping()
                assert client.config_get("port") == {"port": "0"}
                place = Path(client.config_get("unixsocket")["unixsocket"])
            assert (mode(place.parent), mode(place)) == (0o700, 0o700)
        finally:
            server.stop()
        assert not place.parent.exists()


def test_a_killed_redis_is_found_where_it_was_though_the_path_is_too_long_for_a_socket(folder: Path) -> None:
    server = LocalRedis(folder / ("long" * 30))
    try:
        server.start()
        with ask(url := server.url) as client:
            client.set("word", "kept")
            client.config_set("appendfsync", "always")
            os.kill(server.pid, signal.SIGKILL)
            assert until(lambda: not server.running)
            server.start()
            assert server.url == url
            assert client.ping()
    finally:
        server.stop()


def test_redis_in_a_folder_of_any_name_listens_in_it(folder: Path) -> None:
    server = LocalRedis(folder / 'a "b" \\c\'')
    try:
        server.start()
        assert (server.folder / "redis.sock").is_socket()
        with ask(server.url) as client:
            assert client.ping()
    finally:
        server.stop()


def test_redis_on_a_port_asks_for_a_password_that_only_this_user_can_read(folder: Path) -> None:
    server = LocalRedis(folder, free_port())
    try:
        server.start()
        with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        url = LocalRedis.url_of(folder)
        assert url == server.url
        with ask(url) as client:
            assert client.ping()
            pid = client.info("server")["process_id"]
        password = url.partition("@")[0].rpartition(":")[2]
        assert password.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        for file in folder.iterdir():
            assert mode(file) == 0o600 or password.encode() not in file.read_bytes()
    finally:
        server.stop()


def test_a_second_server_in_the_same_folder_names_the_first(folder: Path) -> None:
    server = LocalRedis(folder)
    assert LocalRedis.url_of(folder) is None
    try:
        server.start()
        assert LocalRedis.url_of(folder) == server.url
        with ask(server.url) as client:
            pid = client.info("server")["process_id"]
        with pytest.raises(ServerError, match=rf"runs already as process {pid}\. .*kill {pid}"):
            LocalRedis(folder).start()
        with ask(server.url) as client:
            assert client.ping()
    finally:
        server.stop()
    assert LocalRedis.url_of(folder) is None


def test_ctrl_c_in_the_parents_terminal_leaves_the_children_to_the_parent(folder: Path) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
from ml_backend.adapters.processes.servers import LocalRedis
server = LocalRedis(Path({str(folder)!r}))
server.start()
try:
    os.killpg(0, signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    print(server.running, flush=True)
server.stop()
print(server.running, LocalRedis.url_of(server.folder), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("True\nFalse None\n", 0), done.stderr


def test_a_server_outlives_a_killed_parent_and_is_found_again(folder: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from ml_backend.adapters.processes.servers import LocalRedis
LocalRedis(Path({str(folder)!r})).start()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], timeout=60)
    url = LocalRedis.url_of(folder)
    assert url is not None
    with ask(url) as client, suppress(redis.ConnectionError):
        client.shutdown(nosave=True)


def test_a_server_that_dies_shows_the_end_of_its_log(folder: Path) -> None:
    (folder / "appendonly.aof").write_text("this is no append-only file")
    server = LocalRedis(folder)
    with pytest.raises(ServerError, match=r"(?s)ended with status 1 .*redis\.log.*Bad file format"):
        server.start()
    assert not server.running


def label_studio(folder: Path, port: int, environment: Path) -> LocalLabelStudio:
    return LocalLabelStudio(
        folder,
        port,
        python_env=environment,
        email="a@example.com",
        password="p",
        token="0" * 40,
        files_root=folder / "files",
    )


def test_a_missing_label_studio_is_named_with_the_way_to_get_it(folder: Path) -> None:
    with pytest.raises(
        ServerError, match=r"no Label Studio at .*bin/label-studio.*pip install label-studio="
    ):
        label_studio(folder, free_port(), folder / "nowhere").start()


def test_a_taken_port_is_named_before_anything_starts(folder: Path) -> None:
    program = folder / "env" / "bin" / "label-studio"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho Traceback: something is wrong\nexit 3\n")
    program.chmod(0o755)
    server = LocalRedis(folder / "redis", free_port())
    try:
        server.start()
        assert server.port is not None
        assert not port_is_free(server.port)
        with pytest.raises(ServerError, match=f"Port {server.port} is taken"):
            label_studio(folder / "data", server.port, folder / "env").start()
    finally:
        server.stop()
    with pytest.raises(ServerError, match=r"(?s)ended with status 3 .*something is wrong"):
        label_studio(folder / "data", free_port(), folder / "env").start()


@pytest.mark.slow
def test_what_was_killed_is_started_again_and_what_dies_again_and_again_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    settings = Settings(
        _env_file=None,
        data_dir=folder,
        port=free_port(),
        label_studio_url="http://127.0.0.1:9",
        label_studio_api_key="key",
    )
    with LocalRush(settings, said.append) as rush:
        assert rush.redis is not None
        for part in (rush.backend, rush.redis, *rush.workers.values()):
            killed = part.pid
            os.kill(killed, signal.SIGKILL)
            assert until(lambda part=part: not part.running)
            rush.check()
            assert part.pid not in (0, killed)
        assert until(rush._answers)
        assert sum("started again" in line for line in said) == 4
        monkeypatch.setattr("ml_backend.adapters.processes.local_rush.DEATHS", 1)
        os.kill(rush.backend.pid, signal.SIGKILL)
        assert until(lambda: not rush.backend.running)
        with pytest.raises(ServerError, match=r"(?s)backend has ended 2 times within .*backend\.log"):
            rush.check()
