"""Spans of time and moments as users write them."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone

import pandas as pd
import pytest

from common.duration import Moment, read_duration, read_moment
from common.errors import ConfigurationError

NOW = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)
PARIS = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("90s", 90), (" 10m ", 600), ("1h", 3600), ("2w", 1_209_600)]
)
def test_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert read_duration(text, "--stream-keep") == seconds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("90m", NOW - timedelta(minutes=90)),
        ("7d", NOW - timedelta(days=7)),
        ("2w", NOW - timedelta(days=14)),
        ("2026-11-22", datetime(2026, 11, 22, tzinfo=UTC)),
        ("2026-11-22T14:30", datetime(2026, 11, 22, 14, 30, tzinfo=UTC)),
        (" 2026-11-22 14:30+02:00", datetime(2026, 11, 22, 12, 30, tzinfo=UTC)),
        ("2026-11-22T14:30:00.5Z", datetime(2026, 11, 22, 14, 30, 0, 500_000, tzinfo=UTC)),
        (date(2026, 11, 22), datetime(2026, 11, 22, tzinfo=UTC)),
        (datetime(2026, 11, 22, 14, 30), datetime(2026, 11, 22, 14, 30, tzinfo=UTC)),  # noqa: DTZ001
        (datetime(2026, 11, 22, 14, 30, tzinfo=PARIS), datetime(2026, 11, 22, 13, 30, tzinfo=UTC)),
        (pd.Timestamp("2026-11-22 14:30", tz="Europe/Paris"), datetime(2026, 11, 22, 13, 30, tzinfo=UTC)),
        (timedelta(hours=2), NOW - timedelta(hours=2)),
    ],
)
def test_moment_is_a_date_a_datetime_or_an_age(value: Moment, expected: datetime) -> None:
    found = read_moment(value, NOW, "--since")
    assert found == expected
    assert found.tzinfo == UTC


@pytest.mark.parametrize(
    "value", ["", "yesterday", "7", "0d", "1.5h", "99999y", "2026-13-01", "0001-01-01T00:00+05:00", 5, pd.NaT]
)
def test_invalid_moment_is_named_with_examples(value: Moment) -> None:
    message = f"since {value!r} is not a date or an age. Examples: 2026-11-22, 2026-11-22T14:30, 7d, 90m"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        read_moment(value, NOW, "since")
