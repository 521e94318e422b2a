"""What takes long says how far it is: on a terminal one line, refreshed in place; piped, not a word."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from common.terminal import PlainConsole
from tickpipe import formatting
from tickpipe.progress import ProgressCallback


@contextmanager
def progress(
    what: str,
    shown: Callable[[float], str] = formatting.count,
    *,
    console: Console | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[ProgressCallback]:
    """Gives a function that shows on stderr how far the work is, with rate and time left; `shown` writes an amount."""
    console = console or PlainConsole(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
        task, began = bar.add_task(f"{what} …"), monotonic()
        yield lambda done, total=0, now="": bar.update(
            task, description=line(now or what, done, total, monotonic() - began, shown)
        )


def line(what: str, done: float, total: float, seconds: float, shown: Callable[[float], str] = formatting.count) -> str:
    """How far the work is after so many seconds: done, rate and time left, as far as each can be told."""
    words = f"{what}: {shown(done)}" + (f" of {shown(total)}" if total else "")
    if done <= 0 or seconds < 1:  # a rate over less would be a guess
        return words if total or done > 0 else f"{what} …"
    words += f", {shown(done / seconds)}/s"
    return words + (f", {formatting.span((total - done) * seconds / done)} left" if total > done else "")
