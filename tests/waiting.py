"""Waiting for a condition, with a deadline: no test sleeps and hopes."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

POLL_S = 0.005


def eventually(look: Callable[[], Found], limit_s: float = 10.0, what: str = "the condition") -> Found:
    """What `look` returns as soon as that is true; AssertionError after the time."""
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} did not come true within {limit_s:g} s"
        time.sleep(POLL_S)
    return found
