"""Whether the consumer's loop gets on, and what keeps it from that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from common.errors import OutageError


class Trouble(NamedTuple):
    """An outage: its class, since when (monotonic seconds), and its last error's words."""

    kind: type[OutageError]
    since: float
    words: str


class Progress:
    """Written by the loop's thread, read by any. The loop does one thing at a time, so it has one trouble at most."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`monotonic` gives seconds."""
        self.trouble: Trouble | None = None
        self._monotonic = monotonic
        self._made_at = monotonic()

    def made(self) -> None:
        """A block is stored and acked, or a turn of the loop is done: what was away answers again."""
        self._made_at = self._monotonic()
        self.trouble = None

    def failed(self, error: OutageError) -> None:
        """A try has ended so; it will be made again."""
        since = self.trouble.since if self.trouble and self.trouble.kind is type(error) else self._monotonic()
        self.trouble = Trouble(type(error), since, str(error))

    def reasons(self, stuck_after: float) -> list[str]:
        """Why the work does not get on, at once for an outage, after `stuck_after` seconds for a call that hangs."""
        trouble, now = self.trouble, self._monotonic()
        if trouble:
            return [f"{trouble.words} (failing for {now - trouble.since:.0f} s)"]
        if now - self._made_at > stuck_after:
            return [f"stuck: no block stored and no turn of the loop done for {now - self._made_at:.0f} s"]
        return []
