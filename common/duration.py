"""Spans of time and moments as users write them. Pure."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from common.errors import ConfigurationError

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}

#: A moment as users write it: an ISO date or datetime, or an age such as 90m.
Moment = str | datetime | date | timedelta


def read_duration(text: str, option: str) -> int:
    """Seconds of a span such as 90s, 10m, 1h, 7d or 2w; a number alone is seconds. Raises ConfigurationError."""
    found = re.fullmatch(r"([0-9]{1,9})([smhdwy]?)", text.strip())
    if not found:
        raise ConfigurationError(f"{option} {text!r} is not a span of time. Examples: 10m, 1h, 0")
    return int(found[1]) * _SECONDS[found[2]]


def read_moment(value: Moment, now: datetime, option: str) -> datetime:
    """A moment in UTC: an ISO date or datetime, or an age before `now` such as 90m, 7d or 2w.

    Without an offset, a date and a datetime are in UTC. Raises ConfigurationError.
    """
    try:
        return _moment(value, now).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{option} {value!r} is not a date or an age. Examples: 2026-11-22, 2026-11-22T14:30, 7d, 90m"
        ) from None


def _moment(value: object, now: datetime) -> datetime:
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch("0*[1-9][0-9]*[smhdwy]", text, re.ASCII):
            return now - timedelta(seconds=int(text[:-1]) * _SECONDS[text[-1]])
        value = datetime.fromisoformat(text)
    if isinstance(value, timedelta):
        return now - value
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)  # noqa: DTZ001  in UTC, below
    if not isinstance(value, datetime) or value != value:
        raise ValueError("not a moment")
    return value if value.tzinfo else value.replace(tzinfo=UTC)
