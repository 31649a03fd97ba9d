"""Real servers for the tests, each started once per session and only where a test asks for it."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from ml_backend.adapters.processes.servers import LocalLabelStudio, LocalRedis
from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.lock_order import OrderedLock
from tests.ports import free_port

settings.register_profile("rush", deadline=None)  # a busy machine is no error
settings.load_profile("rush")
OrderedLock.strict = True

ROOT = Path(__file__).resolve().parents[1]
SHARED = (
    {"test_accept", "test_connect", "test_doctor", "test_label_studio", "test_loop", "test_sdk_import"},
    {"test_browser", "test_certificates", "test_replicas", "test_wheel"},
)
"""Files that share a Label Studio and the product run on one worker; the sets take about as long. A file that
is in none of them costs one start more."""
EMAIL, PASSWORD, TOKEN = "rush@example.com", "rush-password", "0123456789abcdef0123456789abcdef01234567"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    for item in items:
        if "label_studio" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.label_studio)
            item.add_marker(pytest.mark.timeout(900))  # the very first start migrates a database
    # Long ones first: where workers share the tests, the short ones at the end fill the gaps.
    items.sort(key=lambda item: (item.get_closest_marker("label_studio") is None, item.path not in slow))


class Sharing(LoadScopeScheduling):
    """Gives workers whole files, or all of those that share a Label Studio and the product."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((" ".join(sorted(files)) for files in SHARED if Path(file).stem in files), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Sharing:
    return Sharing(config, log)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis of this session's own."""
    server = LocalRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def state(redis_url: str) -> Iterator[RedisState]:
    """Empty shared state."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    found = RedisState(redis_url)
    yield found
    found.close()


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLabelStudio]:
    """A real Label Studio of this session's own, with one user, whose ``files_root`` serves local files."""
    environment = _label_studio_environment()
    folder = tmp_path_factory.mktemp("label-studio") / "data"
    shutil.copytree(_template(environment), folder)
    server = _server(folder, environment)
    server.start(print)
    yield server
    server.stop()


def _label_studio_environment() -> Path:
    environment = Path(os.environ.get("RUSH_LABEL_STUDIO_ENV") or ROOT / ".cache" / "label-studio")
    if not (environment / "bin" / "label-studio").exists():
        line = f"No Label Studio in {environment}: run make test, or set RUSH_LABEL_STUDIO_ENV."
        if os.environ.get("CI"):
            pytest.fail(line, pytrace=False)
        pytest.skip(line)
    return environment


def _server(folder: Path, environment: Path) -> LocalLabelStudio:
    return LocalLabelStudio(
        folder,
        free_port(),
        python_env=environment,
        email=EMAIL,
        password=PASSWORD,
        token=TOKEN,
        files_root=folder.parent / "files",
    )


def _template(environment: Path) -> Path:
    """A data folder that is migrated and has the user: a minute or two, once per version of Label Studio."""
    found = next(environment.glob("lib/python*/site-packages/label_studio-*.dist-info"), None)
    version = found.name.removesuffix(".dist-info").partition("-")[2] if found else "unknown"
    template = ROOT / ".cache" / "label-studio-template" / version
    template.parent.mkdir(parents=True, exist_ok=True)
    with template.with_name(f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be making it
        if not template.exists():
            _make(template, environment)
    return template


def _make(template: Path, environment: Path) -> None:
    work = template.with_name(f"{template.name}.{secrets.token_hex(4)}")
    server = _server(work / "data", environment)
    try:
        server.start(print)
        server.stop()
        for leftover in ("lock", "label-studio.log"):
            (work / "data" / leftover).unlink(missing_ok=True)
        (work / "data").rename(template)
    finally:
        server.stop()
        shutil.rmtree(work, ignore_errors=True)
