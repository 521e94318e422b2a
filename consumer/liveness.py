"""Whether the consumer's loop makes progress, and what stops it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from common.errors import OutageError


class Outage(NamedTuple):
    """An outage: its class, its start (monotonic seconds), and its last error message."""

    kind: type[OutageError]
    since: float
    message: str


class Progress:
    """Written by the loop's thread, read by any. The loop does one thing at a time, so it has one outage at most."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`monotonic` gives seconds."""
        self.outage: Outage | None = None
        self._monotonic = monotonic
        self._last_progress = monotonic()

    def made(self) -> None:
        """Record that a batch is stored and acknowledged, or a turn of the loop is done. It ends an outage."""
        self._last_progress = self._monotonic()
        self.outage = None

    def failed(self, error: OutageError) -> None:
        """Record a failed attempt that will be retried."""
        since = self.outage.since if self.outage and self.outage.kind is type(error) else self._monotonic()
        self.outage = Outage(type(error), since, str(error))

    def reasons(self, stuck_after: float) -> list[str]:
        """Why the loop makes no progress: an outage, or a call that has not returned for `stuck_after` seconds."""
        outage, now = self.outage, self._monotonic()
        if outage:
            return [f"{outage.message} (failing for {now - outage.since:.0f} s)"]
        if now - self._last_progress > stuck_after:
            return [f"stuck: no batch stored and no turn of the loop done for {now - self._last_progress:.0f} s"]
        return []
