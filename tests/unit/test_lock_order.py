from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ml_backend.domain.lock_order import OrderedLock, OrderViolation, Rank


def test_locks_are_taken_from_the_outermost_to_the_innermost() -> None:
    events, pool, window = (OrderedLock(rank) for rank in (Rank.EVENTS, Rank.POOL, Rank.WINDOW))
    with events, pool, window:
        pass
    with pool, pytest.raises(OrderViolation, match="EVENTS is taken under POOL"), events:
        pass


def test_two_locks_of_one_rank_are_never_held_together() -> None:
    one, other = OrderedLock(Rank.WRITER), OrderedLock(Rank.WRITER)
    with one, pytest.raises(OrderViolation), other:
        pass


def test_a_lock_that_is_held_may_be_taken_again() -> None:
    queue, pool = OrderedLock(Rank.QUEUE), OrderedLock(Rank.POOL)
    with queue, pool, queue, pool:
        pass
    with queue:
        pass


def test_what_one_thread_holds_says_nothing_about_another() -> None:
    pool, events = OrderedLock(Rank.POOL), OrderedLock(Rank.EVENTS)
    free = threading.Event()

    def elsewhere() -> None:
        with events:
            free.set()

    with ThreadPoolExecutor(1) as other, pool:
        other.submit(elsewhere).result(5)
    assert free.is_set()


def test_a_running_backend_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(OrderedLock, "strict", False)
    with OrderedLock(Rank.WINDOW), OrderedLock(Rank.POOL):
        pass
    assert "POOL is taken under WINDOW" in caplog.text
