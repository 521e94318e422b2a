"""Sizes, their growth, the days until the disk is full, and the line that shows them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.unit.tickpipe.terminal.test_live_view import SNAPSHOT, shown, words
from tickpipe.inspect import doctor
from tickpipe.inspect.sizes import Sizes, days_until_full, folder_size, free_bytes
from tickpipe.inspect.sizes import _growth as growth

SIZES = Sizes(
    table_bytes=1_234_000_000,
    table_rows_estimated=9_876_543,
    table_rows_per_day_estimated=1_728_000.0,
    table_bytes_per_day_estimated=312_000_000.0,
    estimated_over_seconds=86_400.0,
    table_disk_free_bytes=77_300_000_000,
    days_until_full_estimated=247.7,
    stream_bytes=45_600_000,
    stream_bytes_per_day=123_000_000.0,
    redis_used_bytes=50_000_000,
    redis_max_bytes=None,
    spool_bytes=678_000_000,
    spool_bytes_per_day=999_000_000.0,
    spool_disk_free_bytes=77_300_000_000,
)


@pytest.mark.parametrize(
    ("free", "per_day", "expected"),
    [(1000, 10, 100), (1000, 0, None), (1000, -10, None), (None, 10, None), (1000, None, None), (0, 10, 0)],
)
def test_days_until_the_disk_is_full(free: float | None, per_day: float | None, expected: float | None) -> None:
    assert days_until_full(free, per_day) == expected


@pytest.mark.parametrize(
    ("before", "after", "seconds", "expected"),
    [
        (100, 200, 8640, 1000),
        (200, 100, 8640, -1000),
        (100, 200, 59, None),  # too short to derive a growth per day
        (None, 200, 8640, None),
        (100, None, 8640, None),
    ],
)
def test_growth_is_reported_after_a_minute(
    before: int | None, after: int | None, seconds: float, expected: float | None
) -> None:
    assert growth(before, after, seconds / 86_400) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("height", [14, 24, 40])
def test_live_view_shows_sizes_on_separate_lines(width: int, height: int) -> None:
    snapshot = dataclasses.replace(SNAPSHOT, sizes=dataclasses.replace(SIZES, stream_bytes_per_day=None))
    text = shown(snapshot, width=width, height=height)
    found = "table 1.23 GB +312 MB/day stream 45.6 MB spool 678 MB +999 MB/day free 77.3 GB, full in 248 days"
    assert found in words(text)
    assert len(text.splitlines()) <= max(height, 15)
    assert {len(line) for line in text.splitlines()} == {width}


def test_unknown_sizes_are_not_shown_as_zero() -> None:
    unknown = dataclasses.replace(
        SIZES, table_bytes_per_day_estimated=None, table_disk_free_bytes=None, days_until_full_estimated=None,
        stream_bytes=None, stream_bytes_per_day=None, spool_bytes_per_day=None,
    )  # fmt: skip
    assert str(unknown) == "table 1.23 GB  spool 678 MB  free unknown"


def test_free_space_of_a_missing_folder_is_that_of_its_parent(tmp_path: Path) -> None:
    free, there = free_bytes(tmp_path / "not/yet"), free_bytes(tmp_path)
    assert free is not None
    assert there is not None
    assert abs(free - there) < 1e9
    assert folder_size(tmp_path / "not/yet") == 0
    (tmp_path / "a.spool").write_bytes(b"x" * 1234)
    assert folder_size(tmp_path) == 1234


@pytest.mark.parametrize(("free", "state"), [(0, "BAD"), (77_300_000_000, "ok"), (None, "note")])
def test_full_disk_is_critical_and_unknown_disk_is_not(free: int | None, state: str) -> None:
    sizes = dataclasses.replace(SIZES, table_disk_free_bytes=free, days_until_full_estimated=None)
    context = SimpleNamespace(findings=lambda *_, **__: (), measure=lambda: sizes)
    (finding,) = doctor._feed(cast("doctor.CheckContext", context))
    assert finding.state == state
