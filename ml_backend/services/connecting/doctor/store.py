"""Redis: whether it keeps what it is given."""

from __future__ import annotations

from collections.abc import Iterator

from ml_backend.services.connecting.doctor.context import CannotCheckError, CheckContext, Fault

KEEPS = "noeviction"
NEARLY_FULL = 0.9
OWN = "or give Rush a Redis of its own (RUSH_REDIS_URL)."


def memory(context: CheckContext) -> Iterator[Fault]:
    """Redis has room, and throws nothing away where it has none."""
    found = context.state.memory()
    if not found.policy:
        raise CannotCheckError("Redis doesn't let this user read its memory settings (INFO)")
    limit = f"{found.limit / 1e6:.0f} MB" if found.limit else "no limit"
    value = f"maxmemory-policy {found.policy}, {found.used / 1e6:.1f} MB used, {limit}"
    if found.policy != KEEPS:
        lost = (
            "whole projects with their label configs and queues"
            if found.policy.startswith("allkeys")
            else "the keys that expire, such as which worker lives and which replica owns a project"
        )
        yield Fault(
            f"This Redis is a cache: once its memory is full it throws {lost} away without an error.",
            value,
            f"Set its maxmemory-policy to {KEEPS}, {OWN}",
            warning=True,
        )
    if found.limit and found.used > NEARLY_FULL * found.limit:
        yield Fault(
            "The memory of Redis is nearly full; then it takes no new tasks, labels or jobs.",
            value,
            f"Raise its maxmemory, {OWN}",
            warning=True,
        )
