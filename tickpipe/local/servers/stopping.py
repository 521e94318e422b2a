"""Stops the start of a server."""

from __future__ import annotations

import threading

from common.errors import TickpipeError

#: Seconds between two checks of a server or a command that starts.
POLL = 0.01


class StartStoppedError(TickpipeError):
    """The start of an embedded server was stopped."""


def raise_if_set(stop: threading.Event | None) -> None:
    """Raise StartStoppedError if the event is set."""
    if stop is not None and stop.is_set():
        raise StartStoppedError
