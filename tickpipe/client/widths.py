"""Widths of candles, and times aligned with them. Pure."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

from common.duration import read_duration
from common.errors import ConfigurationError

_EPOCH, _MINUTE = datetime(1970, 1, 1, tzinfo=UTC), timedelta(minutes=1)


def read_width(value: str | timedelta) -> timedelta:
    """The width of a candle such as 5m, 1h or 1d, or a timedelta: whole minutes. Raises ConfigurationError."""
    with suppress(ConfigurationError, OverflowError, TypeError):
        width = timedelta(seconds=read_duration(value, "width")) if isinstance(value, str) else value
        if width >= _MINUTE and width % _MINUTE == timedelta(0):
            return width
    raise ConfigurationError(f"width {value!r} is not a width of candles in whole minutes. Examples: 1m, 5m, 1h, 1d")


def floor(at: datetime, width: timedelta) -> datetime:
    """The start of the interval that contains this time. Intervals count from 1970-01-01 UTC, as in SQL."""
    return at - (at - _EPOCH) % width


def ceiling(at: datetime, width: timedelta) -> datetime:
    """The first start of an interval at or after this time."""
    return at + (_EPOCH - at) % width
