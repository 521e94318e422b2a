"""Progress of long work: one line on stderr, refreshed in place. Prints nothing if stderr is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import (
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from common.terminal import PlainConsole
from tickpipe.progress import ProgressCallback

#: Seconds over which the rate is measured. A rate limiter may pause for 60 s.
RATE_PERIOD = 180.0


@contextmanager
def progress(
    description: str,
    *,
    unit: Literal["items", "bytes"] = "items",
    console: Console | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[ProgressCallback]:
    """Show the description, the elapsed time and, as soon as they are reported, amount, rate and time left.

    Yields the function that reports.
    """
    console = console or PlainConsole(stderr=True)
    leading = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(
        *leading,
        console=console,
        transient=True,
        disable=not console.is_interactive,
        get_time=monotonic,
        speed_estimate_period=RATE_PERIOD,
    ) as bar:
        task = bar.add_task(description, total=None)

        def report(done: float, total: float = 0, description: str = "") -> None:
            bar.columns = (*leading, *_amount(unit)) if done or total else leading
            bar.update(task, completed=done, total=total or None, description=description or None)

        yield report


def _amount(unit: Literal["items", "bytes"]) -> tuple[ProgressColumn, ...]:
    if unit == "bytes":
        return DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    return MofNCompleteColumn(), TaskProgressColumn(show_speed=True), TimeRemainingColumn()
