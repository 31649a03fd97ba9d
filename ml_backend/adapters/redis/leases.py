"""Which of several web processes owns a project: a lease in Redis, renewed while its process lives."""

from __future__ import annotations

import logging
import threading
import time

from ml_backend.adapters.redis.client import Connections
from ml_backend.domain.deadline import PROMPT, within
from ml_backend.domain.errors import StoreError
from ml_backend.domain.model import ProjectRef

log = logging.getLogger(__name__)

LEASE_SECONDS = 3.0
"""After this long without a sign of its owner a project is anybody's."""
# Not redis-py's Lock: it tells that a lease is taken but not by whom, so owner() would have to ask once more,
# and the lease may end in between; and a process that comes back under its URL could not renew what it holds.
CLAIM = """
local owner = redis.call('GET', KEYS[1])
if not owner or owner == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return ARGV[1]
end
return owner
"""
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class RedisLeases:
    """``ports.Leases``: leases of ``seconds`` under this process's ``url``.

    What is owned is known without asking Redis, so the owner's requests cost nothing. Raises StoreError where
    Redis does not answer and the lease may be over.
    """

    def __init__(self, redis_url: str, url: str, seconds: float = LEASE_SECONDS) -> None:
        self.url, self._seconds = url.rstrip("/"), seconds
        self._connections = Connections(redis_url)
        self._until: dict[ProjectRef, float] = {}
        self._done = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="owner", daemon=True)
        self._keeper.start()

    def owner(self, project: ProjectRef) -> str:
        """The address of the process that owns the project: this one's own where nobody else does."""
        if self._until.get(project, 0.0) > time.monotonic():
            return self.url
        return self._ask(project)

    def close(self) -> None:
        """Give everything back, so that another process takes over at once."""
        self._done.set()
        self._keeper.join()
        for project in list(self._until):
            try:
                with within(PROMPT), self._connections.use() as redis:
                    redis.eval(RELEASE, 1, _name(project), self.url)
            except StoreError:
                break  # the leases end by themselves
        self._connections.close()

    def _ask(self, project: ProjectRef) -> str:
        began = time.monotonic()
        with within(PROMPT), self._connections.use() as redis:
            owner = str(redis.eval(CLAIM, 1, _name(project), self.url, int(1000 * self._seconds)))
        if owner == self.url:
            self._until[project] = began + self._seconds
        else:
            self._until.pop(project, None)
        return owner

    def _keep(self) -> None:
        while not self._done.wait(self._seconds / 4):
            for project in list(self._until):
                try:
                    if (other := self._ask(project)) != self.url:
                        log.warning("project %s is %s's now.", project.id, other)
                except StoreError as error:
                    log.warning("The lease of project %s is not renewed: %s", project.id, error)


def _name(project: ProjectRef) -> str:
    return f"rush:{project.slug}:owner"
