"""Child processes that end with their parent, and signals."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress


def ending_with_parent(stop_signal: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """A `preexec_fn` that makes Linux send `stop_signal` to the child when our main thread ends.

    It runs after the change of user, which would clear the setting. None on other systems: there the next start ends
    processes that are left over.
    """
    if sys.platform != "linux":
        return None
    prctl, set_parent_death_signal, parent = ctypes.CDLL(None).prctl, 1, os.getpid()

    def request_signal() -> None:
        prctl(set_parent_death_signal, int(stop_signal), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the request
            os._exit(1)

    return request_signal


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process if it still exists and is ours."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
