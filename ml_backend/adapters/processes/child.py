"""One server process as a child of ours: started, watched, stopped in our order."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from ml_backend.domain.errors import ServerError

Progress = Callable[[str], None]
Command = Sequence[str | os.PathLike[str]]


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


class Child:
    """One server process that owns its folder for as long as it lives.

    The lock on ``<folder>/lock`` is inherited by the child: it outlives a killed parent and never goes stale.
    The child leads its own process group: Ctrl+C in our terminal doesn't reach it, we stop it in our order.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether we started it and it lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id; 0 where it isn't running."""
        return self._process.pid if self._process is not None and self.running else 0

    def start(self, command: Command, environment: Mapping[str, str] | None = None) -> None:
        """Start it; ServerError if it, or another process in the same folder, runs already."""
        if self.running:
            raise ServerError(f"{self.name} is started already.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as lock, self.log.open("ab") as log:
            self._claim(lock)
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
            lock.seek(0)
            lock.truncate()
            lock.write(str(self._process.pid))

    def _claim(self, lock: IO[str]) -> None:
        # Not filelock: the child inherits this lock and keeps it when we are killed, and LocalRedis.url_of
        # probes it with a shared one.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip() or "?"
            raise ServerError(
                f"{self.name} in {self.folder} runs already as process {pid}.",
                f"Use that one, stop it (kill {pid}), or choose another folder.",
            ) from None

    def wait(self, ready: Callable[[], bool], timeout: float, progress: Progress, what: str) -> None:
        """Return once ``ready()``, telling every few seconds that we still wait.

        ServerError with the log's tail if it dies or hangs; it is stopped whenever this doesn't return.
        """
        try:
            self._wait(ready, timeout, progress, what)
        except BaseException:
            self.stop()
            raise

    def _wait(self, ready: Callable[[], bool], timeout: float, progress: Progress, what: str) -> None:
        began = told = time.monotonic()
        progress(f"{what} …")
        while not ready():
            now = time.monotonic()
            if self._process is None or self._process.poll() is not None:
                code = self._process.returncode if self._process else None
                raise ServerError(f"{self.name} ended with status {code} while starting.", self.tail())
            if now - began > timeout:
                raise ServerError(f"{self.name} did not answer within {timeout:.0f} s.", self.tail())
            if now - told >= 5:
                told = now
                progress(f"{what} … {now - began:.0f} s")
            time.sleep(0.1)

    def tail(self, lines: int = 20) -> str:
        """The end of the log, to go into an error."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        last = "\n".join(text.splitlines()[-lines:])
        return f"The end of {self.log}:\n{last or '(empty)'}"

    def stop(self, timeout: float = 15.0) -> None:
        """End the process group and wait for it; nothing happens where it isn't running."""
        process, self._process = self._process, None
        if process is None:
            return
        for sign, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(process.pid, sign)
            except (ProcessLookupError, PermissionError):
                break  # every member is gone
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            if _group_gone(process.pid, patience):
                break
        process.wait(5.0)


def _group_gone(group: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return True
        time.sleep(0.05)
    return False
