"""The progress display: amount, rate and time left on a terminal, nothing in a pipe."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import pytest
from rich.console import Console

from tickpipe.terminal.progress import progress

Report = tuple[float, float, float, str]


def shown(
    reports: Sequence[Report], *, terminal: bool = True, width: int = 120, unit: Literal["items", "bytes"] = "items"
) -> str:
    """The output for these reports: seconds since the start, done, total, description."""
    file, clock = io.StringIO(), [0.0]
    console = Console(file=file, force_terminal=terminal, width=width, color_system=None, legacy_windows=False)
    with progress("verifying", unit=unit, console=console, monotonic=lambda: clock[0]) as report:
        for clock[0], done, total, description in reports:
            report(done, total, description)
    return " ".join(file.getvalue().split())


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([], "verifying 0:00:00"),
        ([(60, 0, 0, "")], "verifying 0:01:00"),
        ([(0, 0, 1000, ""), (5, 0, 1000, "")], "verifying 0:00:05 0/1000 0% -:--:--"),
        ([(0, 250, 1000, "")], "verifying 0:00:00 250/1000 25% -:--:--"),  # one report gives no rate
        ([(0, 0, 1000, ""), (1, 50, 1000, ""), (6, 300, 1000, "")], "verifying 0:00:06 300/1000 30% 0:00:14"),
        ([(0, 1, 0, ""), (5, 251, 0, "")], "verifying 0:00:05 251/? 50.0 it/s"),
        ([(0, 0, 1000, ""), (5, 1000, 1000, "")], "verifying 0:00:05 1000/1000 100% 0:00:00"),
        (
            [(0, 0, 1000, ""), (6, 1200, 1000, "")],
            "verifying 0:00:06 1200/1000 100% 0:00:00",
        ),  # an estimate
        ([(0, 250, 1000, ""), (9, 0, 0, "waiting")], "waiting 0:00:09"),
    ],
)
def test_progress_line_shows_known_count_rate_and_time_left(reports: Sequence[Report], expected: str) -> None:
    assert expected in shown(reports)


def test_byte_counts_have_byte_units() -> None:
    found = shown([(0, 0, 2e9, "moving"), (5, 2.5e8, 2e9, ""), (10, 5e8, 2e9, "")], unit="bytes")
    assert "moving 0:00:10 0.5/2.0 GB 50.0 MB/s 0:00:30" in found


@pytest.mark.parametrize("width", [80, 120])
def test_progress_is_one_line_on_a_terminal(width: int) -> None:
    reports = [(0.0, 1_234_567.0, 5_000_000.0, "verifying session 12 of 400, prices")]
    reports += [(10.0, 2_500_000.0, 5_000_000.0, "verifying session 13 of 400, prices")]
    found = shown(reports, width=width)
    assert "verifying session 13 of 400, prices 0:00:10 2500000/5000000 50%" in found


def test_progress_is_silent_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown([(1, 1, 2, "")], terminal=False) == ""
    with progress("verifying") as report:  # pytest's stderr is not a terminal
        report(1, 2)
    assert capsys.readouterr() == ("", "")
