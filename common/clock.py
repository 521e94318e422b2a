"""The clocks that the command lines and the Python client inject."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def microseconds() -> int:
    """The time now, microseconds since 1970."""
    return time.time_ns() // 1000


def utc() -> datetime:
    """The time now."""
    return datetime.now(UTC)
