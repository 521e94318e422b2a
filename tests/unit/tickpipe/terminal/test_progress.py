"""Progress shows rate and time left on a terminal, and nothing if piped."""

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
        (0, 0, 0, "verifying …"),
        (0, 0, 60, "verifying …"),
        (0, 1000, 5, "verifying: 0 of 1,000"),
        (250, 1000, 0.5, "verifying: 250 of 1,000"),  # too short to compute a rate
        (250, 1000, 5, "verifying: 250 of 1,000, 50/s, 15 s left"),
        (250, 0, 5, "verifying: 250, 50/s"),
        (1000, 1000, 5, "verifying: 1,000 of 1,000, 200/s"),
        (1200, 1000, 6, "verifying: 1,200 of 1,000, 200/s"),  # the count may exceed an estimated total
        (1, 1_000_000, 3600, "verifying: 1 of 1,000,000, 0/s, 41667 days left"),
    ],
)
def test_progress_line_shows_known_count_rate_and_time_left(
    done: float, total: float, seconds: float, expected: str
) -> None:
    found = line("verifying", done, total, seconds)
    assert found == expected


def test_byte_counts_have_byte_units() -> None:
    assert line("moving", 5e8, 2e9, 10, formatting.size) == "moving: 500 MB of 2 GB, 50 MB/s, 30 s left"


def shown(*, terminal: bool, width: int = 80) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, color_system=None, legacy_windows=False)
    clock = iter([0.0, *[10.0] * 10])
    with progress("verifying", console=console, monotonic=lambda: next(clock)) as tell:
        tell(1_234_567, 5_000_000, "verifying session 12 of 400, prices")
        tell(2_500_000, 5_000_000, "verifying session 13 of 400, prices")
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_progress_is_one_line_on_a_terminal(width: int) -> None:
    found = shown(terminal=True, width=width)
    assert "verifying session 13 of 400, prices: 2,500,000 of 5,000,000" in " ".join(found.split())


def test_progress_is_silent_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(terminal=False) == ""
    with progress("verifying") as tell:  # pytest's stderr is not a terminal
        tell(1, 2)
    assert capsys.readouterr() == ("", "")
