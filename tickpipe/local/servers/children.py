"""Processes of this machine: signals, and children that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

if sys.platform != "win32":
    pass


def ending_with_parent(stop_signal: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """What a child does before it becomes the server: ask Linux for `stop_signal` when our main thread ends.

    It runs after the change of user, which would undo it. Elsewhere the next start ends what is left over.
    """
    if sys.platform != "linux":
        return None
    prctl, set_parent_death_signal, parent = ctypes.CDLL(None).prctl, 1, os.getpid()

    def ask() -> None:
        prctl(set_parent_death_signal, int(stop_signal), 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask


def _signal(pid: int, number: int) -> None:
    """Send a signal, if there still is such a process."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
