"""Shows the live view: refreshed in place on a terminal, else one plain line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console
from rich.live import Live

from tickpipe.inspect.reader import StatusReader
from tickpipe.inspect.snapshot import Snapshot
from tickpipe.terminal import live_view

#: Seconds between two plain lines.
LINE_INTERVAL = 5.0


@contextmanager
def display(
    reader: StatusReader, console: Console, title: str, footer: str, find_error: Callable[[], str] = str
) -> Iterator[Callable[[], None]]:
    """Yields a function that refreshes the view.

    `find_error` gives an error that the reader does not see, or an empty string.
    """

    def read() -> Snapshot:
        return replace(reader.read(), producer_error=find_error())

    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=False) as live:
            yield lambda: live.update(
                live_view.render(read(), title=title, footer=footer, width=console.width, height=console.height),
                refresh=True,
            )
        return
    printed_at = time.monotonic() - LINE_INTERVAL + 1.0  # the first line after one second

    def refresh() -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at >= LINE_INTERVAL:
            printed_at = time.monotonic()
            console.print(live_view.line(read(), title=title), soft_wrap=True, markup=False)

    yield refresh
