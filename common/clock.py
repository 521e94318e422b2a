"""The clock that the command lines inject."""

from __future__ import annotations

import time


def microseconds() -> int:
    """The time now, microseconds since 1970."""
    return time.time_ns() // 1000
