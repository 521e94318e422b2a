"""Numbers events on arrival, so that a lost tick shows up as a hole and a duplicate is recognized.

Twelve Data does not number its messages. A session with sequence numbers is what market-data protocols use, for example
NASDAQ's MoldUDP64.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from common import feed_event
from common.feed_event import FeedEvent
from common.tick import TIME_RANGE

_DAY = 86_400_000_000  # microseconds

#: A session ends if the clock goes back by this many microseconds. No time in it is further ahead of the clock.
MAX_AHEAD = 1_000_000

#: The cause of a loss that the publisher records.
SPOOL_FULL = "spool full"


class Session:
    """A run of a producer within one UTC day. Its id is its start in microseconds since 1970.

    Price events and feed events each have numbers 1, 2, 3 and so on. Only the feed's thread numbers price events; any
    thread may number feed events.
    """

    def __init__(self, start: int, emit: Callable[[FeedEvent], None], clock: Callable[[], int]) -> None:
        """`emit` receives each feed event. `clock` gives microseconds UTC."""
        self.id = start
        self.ends = (start // _DAY + 1) * _DAY
        self.seq = 0
        self.instruments: set[tuple[str, str]] = set()  # (symbol, exchange) recorded so far, by the publisher's thread
        self.time_min, self.time_max = math.inf, -math.inf  # of the exchange's times, in seconds
        self._received = self._reported = start  # the latest times given to a price event and to a feed event
        self._number = 0
        self._emit = emit
        self._clock = clock
        self._lock = threading.RLock()

    def is_over(self, now: int) -> bool:
        """Whether a new session must begin: the UTC day has ended, or the clock has gone back by MAX_AHEAD or more."""
        return now >= self.ends or self.ahead(now) >= MAX_AHEAD

    def ahead(self, now: int) -> int:
        """Microseconds by which the latest time of this session is ahead of `now`; negative if it is behind."""
        return max(self._received, self._reported) - now

    def number(self, event: Mapping[str, Any], now: int) -> PriceEvent:
        """Number a price event. `received` is strictly increasing: a tie, or a clock that steps back, adds 1 µs."""
        self.seq += 1
        self._received = now if now > self._received else self._received + 1
        try:
            time = float(event["timestamp"])
        except (KeyError, TypeError, ValueError):
            pass  # the database will reject the tick; it does not belong in the session's time span
        else:
            if TIME_RANGE[0] <= time < TIME_RANGE[1]:
                self.time_min, self.time_max = min(self.time_min, time), max(self.time_max, time)
        return PriceEvent(self, self.seq, self._received, event)

    def make(self, kind: str, at: int | None = None, /, **detail: object) -> FeedEvent:
        """The next feed event of this session. `at` is microseconds UTC, by default the current time."""
        with self._lock:
            self._number += 1
            at = at or self._clock()
            self._reported = max(self._reported, at)
            return feed_event.make(self.id, self._number, at, kind, detail)

    def emit(self, kind: str, at: int | None = None, /, **detail: object) -> None:
        """Make a feed event and emit it."""
        with self._lock:  # in one step, so that events are emitted in the order of their numbers
            self._emit(self.make(kind, at, **detail))

    def checkpoint(self, kind: str, at: int | None = None, /, **detail: object) -> None:
        """Emit a feed event with the last price number and the span of the exchange's times.

        `verify` expects every price up to this number.
        """
        span = {"time_min": self.time_min, "time_max": self.time_max} if self.time_min <= self.time_max else {}
        self.emit(kind, at, last_seq=self.seq, **span, **detail)


class PriceEvent(NamedTuple):
    """A price event as received, with its identity (session, seq) and the time of receipt (microseconds UTC)."""

    session: Session
    seq: int
    received: int
    event: Mapping[str, Any]


def overflow(first: PriceEvent, last: PriceEvent, cause: str) -> FeedEvent:
    """The feed event that records the loss of all price events from `first` to `last`."""
    return first.session.make("overflow", **_loss(first, last, cause))


def emit_overflow(first: PriceEvent, last: PriceEvent, cause: str) -> None:
    """Make this feed event and emit it."""
    first.session.emit("overflow", **_loss(first, last, cause))


def _loss(first: PriceEvent, last: PriceEvent, cause: str) -> dict[str, object]:
    return {
        "first_seq": first.seq,
        "last_seq": last.seq,
        "since": first.received,
        "until": last.received,
        "cause": cause,
    }
