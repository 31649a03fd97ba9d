"""A Redis that throws away or is full: doctor warns, whatever this user may ask it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from ml_backend.adapters.redis.state import RedisState
from ml_backend.domain.model import ProjectRef
from ml_backend.services.connecting.doctor import store
from ml_backend.services.connecting.doctor.context import CannotCheckError, CheckContext, Fault
from ml_backend.settings import Settings
from tests.fakes import FakeLabelStudio


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as found:
        yield found
        found.config_set("maxmemory", "0")
        found.config_set("maxmemory-policy", "noeviction")


def faults(url: str) -> list[Fault]:
    state = RedisState(url)
    ref = ProjectRef("http://studio", 1)
    try:
        return list(store.memory(CheckContext(ref, FakeLabelStudio(), state, Settings(_env_file=None))))
    finally:
        state.close()


def test_a_redis_that_keeps_everything_is_fine(client: Redis, redis_url: str) -> None:
    assert faults(redis_url) == []
    client.config_set("maxmemory", "1gb")
    assert faults(redis_url) == []


@pytest.mark.parametrize(
    ("policy", "lost"),
    [
        ("allkeys-lru", "whole projects"),
        ("allkeys-lfu", "whole projects"),
        ("allkeys-random", "whole projects"),
        ("volatile-lru", "the keys that expire"),
        ("volatile-ttl", "the keys that expire"),
    ],
)
def test_a_redis_that_is_a_cache_is_warned_of(client: Redis, redis_url: str, policy: str, lost: str) -> None:
    client.config_set("maxmemory-policy", policy)
    (found,) = faults(redis_url)
    assert found.warning
    assert lost in found.problem
    assert policy in found.value
    assert "noeviction" in found.fix


def test_a_redis_that_is_nearly_full_is_warned_of(client: Redis, redis_url: str) -> None:
    client.config_set("maxmemory", str(int(client.info("memory")["used_memory"] * 1.05)))
    (found,) = faults(redis_url)
    assert "nearly full" in found.problem
    assert "MB used" in found.value


def test_a_redis_that_does_not_tell_is_said_so(client: Redis, redis_url: str) -> None:
    client.acl_setuser("guest", enabled=True, passwords=["+guest"], keys=["*"], commands=["+@all", "-info"])
    scheme, _, rest = redis_url.partition("://")
    try:
        with pytest.raises(CannotCheckError, match="INFO"):
            faults(f"{scheme}://guest:guest@{rest.rpartition('@')[2]}")
    finally:
        client.acl_deluser("guest")
