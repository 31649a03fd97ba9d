"""All of Rush on one machine: Redis, backend and worker as children, for ``rush start``, demo and tests."""

from __future__ import annotations

import os
import sys
import time
import urllib.error
import urllib.request
from types import TracebackType

from ml_backend.adapters.processes.child import Child, Progress, port_is_free
from ml_backend.adapters.processes.servers import LocalRedis
from ml_backend.domain.errors import ServerError
from ml_backend.settings import Settings

DEATHS, WITHIN = 5, 30.0
"""A part that ends more often in so many seconds would do so again."""


class LocalRush:
    """A context in which Rush runs; ServerError with the log's tail where a part doesn't start.

    Backend and workers get these settings; Redis is started only where none is set. ``check`` starts again
    what was killed.
    """

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings, self.progress = settings, progress
        folder = settings.data_dir.resolve()
        self.redis = None if settings.redis_url else LocalRedis(folder / "redis")
        self.backend = Child("backend", folder / "backend")
        # Two, so that new images need not wait until a long map is written back.
        self.workers = {only: Child(f"worker-{only}", folder / f"worker-{only}") for only in ("fast", "slow")}
        self._deaths: dict[str, list[float]] = {}

    @property
    def redis_url(self) -> str:
        """The Redis that backend and worker use."""
        return self.settings.redis_url or (self.redis.url if self.redis else "")

    def __enter__(self) -> LocalRush:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        settings = self.settings
        if not port_is_free(settings.port, settings.host):
            raise ServerError(
                f"Port {settings.port} is taken.", "Stop what listens there or set RUSH_PORT to another one."
            )
        if self.redis is not None:
            self.redis.start(self.progress)
        for only in self.workers:
            self._start_worker(only)
        self._start_backend()
        self.backend.wait(self._answers, 120, self.progress, "Starting the backend")

    def _start_worker(self, only: str) -> None:
        command = [sys.executable, "-m", "ml_backend.cli", "worker", "--only", only]
        self.workers[only].start(command, self._environment())

    def _start_backend(self) -> None:
        # Idle BLAS threads spin, and the index then waits for a core: 0.4 ms a search become 4.
        alone = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.backend.start([sys.executable, "-m", "ml_backend.cli", "serve"], self._environment() | alone)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **self.settings.environment(),
            "RUSH_DATA_DIR": str(self.settings.data_dir.resolve()),
            "RUSH_REDIS_URL": self.redis_url,
            "PYTHONUNBUFFERED": "1",
        }

    def _answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.settings.own_url}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def check(self) -> None:
        """Start again what has died; ServerError with the log's tail where it dies again and again."""
        if self.redis is not None and not self.redis.running:
            self._count("redis", f"Its log is {self.redis.folder / 'redis.log'}.")
            self.redis.start()
        if not self.backend.running:
            self._count(self.backend.name, self.backend.tail())
            self._start_backend()
        for only, worker in self.workers.items():
            if not worker.running:
                self._count(worker.name, worker.tail())
                self._start_worker(only)

    def _count(self, part: str, log: str) -> None:
        now = time.monotonic()
        deaths = [at for at in self._deaths.get(part, ()) if now - at < WITHIN]
        if len(deaths) >= DEATHS:
            raise ServerError(f"The {part} has ended {DEATHS + 1} times within {WITHIN:.0f} s.", log)
        self._deaths[part] = [*deaths, now]
        self.progress(f"The {part} has ended; it is started again.")

    def stop(self) -> None:
        """Stop all parts in order; what they are doing is finished or stays queued."""
        self.backend.stop()
        for worker in self.workers.values():
            worker.stop()
        if self.redis is not None:
            self.redis.stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
