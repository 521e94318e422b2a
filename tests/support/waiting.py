"""Waiting for a condition, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

#: Seconds between two looks.
POLL = 0.02
#: Seconds until a test gives up waiting for what takes a moment: only a machine that is very busy takes some of them.
PATIENCE = 30.0


def wait_for(condition: Callable[[], T | None], timeout: float = PATIENCE, message: str = "") -> T:
    """Look until `condition()` is true, and return what it gave; the test fails after `timeout` seconds."""
    until = time.monotonic() + timeout
    while not (found := condition()):
        if time.monotonic() > until:
            pytest.fail(f"after {timeout:g} s still not: {message or condition}")
        time.sleep(POLL)
    return found
