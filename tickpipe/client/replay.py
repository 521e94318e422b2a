"""Repeats stored ticks at their pace, or at a multiple of it."""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import datetime, timedelta

from common.database.client import DatabaseClient
from common.errors import ConfigurationError
from tickpipe.client.tick import Tick

#: Seconds of the longest wait between two looks at `stop`.
WAIT = 0.25


def read_speed(speed: float) -> float:
    """The speed. Raises ConfigurationError for one that is negative or not finite."""
    if 0 <= speed < math.inf:
        return speed
    raise ConfigurationError(f"speed {speed!r} is not a speed. Use 1 as received, 60 for a minute a second, 0 at once")


def replay(
    database: DatabaseClient,
    portions: Iterator[Sequence[tuple[object, ...]]],
    speed: float,
    stop: threading.Event,
    monotonic: Callable[[], float],
) -> Generator[list[Tick]]:
    """The ticks of these rows in batches, each when it is due, until `stop` is set.

    A batch is empty if none is due for a moment. At the end it closes the connection. `monotonic` gives seconds. Raises
    OutageError, ConfigurationError.
    """
    try:
        pace: _Pace | None = None
        for rows in portions:
            left = [Tick._make(row) for row in rows]
            pace = pace or _Pace(left[0].received_at, speed, monotonic)
            while left and not stop.is_set():
                count = bisect_right(left, pace.reached(), key=_received) if speed else len(left)
                if not count:
                    stop.wait(min(WAIT, pace.seconds_until(left[0].received_at)))
                yield left[:count]
                left = left[count:]
            if stop.is_set():
                return
    finally:
        database.close()


class _Pace:
    """The clock of a replay: it begins with the first tick."""

    def __init__(self, first: datetime, speed: float, monotonic: Callable[[], float]) -> None:
        self._first, self._speed, self._monotonic = first, speed, monotonic
        self._began = monotonic()

    def reached(self) -> datetime:
        """The time of receipt up to which ticks are due."""
        return self._first + timedelta(seconds=(self._monotonic() - self._began) * self._speed)

    def seconds_until(self, received_at: datetime) -> float:
        """Seconds until this tick is due."""
        return max(0.0, (received_at - self.reached()).total_seconds() / self._speed)


def _received(tick: Tick) -> datetime:
    return tick.received_at
