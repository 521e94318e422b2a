"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

#: Seconds between two checks.
POLL = 0.02
#: Timeout of a short wait in seconds. It is long because the machine may be very busy.
PATIENCE = 60.0


def wait_for(condition: Callable[[], T | None], timeout: float = PATIENCE, message: str = "") -> T:
    """Wait until `condition()` is true and return its value. Fails after `timeout` seconds."""
    until = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > until:
            pytest.fail(f"after {timeout:g} s still not: {message or condition}")
        time.sleep(POLL)
    return found
