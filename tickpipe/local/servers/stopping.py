"""How a signal stops the start of a server."""

from __future__ import annotations

import sys
import threading

from common.errors import TickpipeError

if sys.platform != "win32":
    pass

#: Seconds between two checks of a server or a command that starts.
POLL = 0.01


class StartStoppedError(TickpipeError):
    """The start of an embedded server was stopped."""


def _raise_if_set(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise StartStoppedError
