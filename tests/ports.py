"""Ports for servers of the tests, which no other worker of this session and no outgoing connection takes."""

from __future__ import annotations

import os
import random
from itertools import cycle

from ml_backend.adapters.processes.servers import port_is_free

FIRST, SLICE = 10_000, 1_000
"""Below the ports that systems give to outgoing connections (from 32768): 22 workers fit."""

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 22
_slice = range(FIRST + _worker * SLICE, FIRST + (_worker + 1) * SLICE)
_start = random.Random(os.getpid()).randrange(SLICE)  # other sessions on this machine start elsewhere
_turn = cycle([*_slice[_start:], *_slice[:_start]])


def free_port() -> int:
    """A TCP port of this worker's own that nothing listens on, another one at each call."""
    return next(port for port in _turn if port_is_free(port))
