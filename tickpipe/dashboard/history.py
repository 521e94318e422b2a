"""One symbol's candles, gaps and latest ticks."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tickpipe.inspect.cached_query import CachedQuery
from tickpipe.inspect.database import Candle, Gap, Interval, Reader, Tick

#: Candles that are read: the most that a chart shows.
MOST = 150
#: The latest ticks that are listed.
TICKS = 30
#: Symbols and intervals that are remembered: browsers that look at the same one cost one look.
REMEMBERED = 24
#: How often the past is searched for candles where a symbol was silent for longer than a chart shows.
STEPS = 4
#: Seconds that a tick's time may be ahead of when it was received; as in latest_ticks() of sql/0020.
AHEAD = 60.0
#: Seconds after which a chart's whole past is read anew: what came late shows.
REREAD = 60.0


@dataclass(frozen=True)
class Look:
    """A symbol as a chart shows it: candles and gaps oldest first, ticks newest first."""

    candles: Sequence[Candle]
    gaps: Sequence[Gap]
    ticks: Sequence[Tick]


def with_ticks(candles: Sequence[Candle], ticks: Sequence[Tick], seconds: int) -> list[Candle]:
    """The candles, moved on by the latest ticks (newest first): those that are in them already change nothing.

    A tick whose time is ahead of when it was received is left out: its candle would come after all later ones.
    """
    moved = list(candles)
    for tick in reversed([tick for tick in ticks if tick.time <= tick.received + AHEAD]):
        start = tick.time // seconds * seconds
        last = moved[-1] if moved else None
        if last is None or start > last.start:
            moved.append(Candle(start, tick.price, tick.price, tick.price, tick.price, 1, None))
        elif start == last.start:
            high, low = max(last.high, tick.price), min(last.low, tick.price)
            count = last.ticks + (len(moved) > len(candles))  # one that was read has counted its ticks
            moved[-1] = last._replace(high=high, low=low, close=tick.price, ticks=count)
    return moved


class Charts:
    """Looks at symbols, one at a time."""

    def __init__(self, reader: Reader, *, every: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`every`: seconds between two looks at one symbol, at least."""
        self._reader = reader
        self._every = every
        self._monotonic = monotonic
        self._series: OrderedDict[tuple[str, str], _Series] = OrderedDict()

    def look(self, symbol: str, interval: Interval) -> Look:
        """The symbol now. Raises OutageError."""
        key = (symbol, interval.name)
        series = self._series.get(key)
        if series is None:
            series = _Series(self._reader, symbol, interval, self._every, self._monotonic)
        self._series[key] = series
        self._series.move_to_end(key)
        while len(self._series) > REMEMBERED:
            self._series.popitem(last=False)
        return series.look()


class _Series:
    """One symbol's candles of one width: the past is read now and then, the newest two each time."""

    def __init__(
        self, reader: Reader, symbol: str, interval: Interval, every: float, monotonic: Callable[[], float]
    ) -> None:
        self._reader = reader
        self._symbol = symbol
        self._interval = interval
        self._past = CachedQuery(self._read_past, REREAD, monotonic)
        self._newest = CachedQuery(self._read_newest, every, monotonic)
        self._ticks = CachedQuery(self._read_ticks, every, monotonic)
        self._gaps = CachedQuery(self._read_gaps, 5.0, monotonic)
        self._candles: list[Candle] = []
        self._lock = threading.Lock()

    def look(self) -> Look:
        with self._lock:
            return self._look()

    def _look(self) -> Look:
        ticks = self._ticks()
        past = self._past()
        fresh = self._newest() if past else []
        begun = fresh[0].start if fresh else float("inf")
        self._candles = [*(candle for candle in past if candle.start < begun), *fresh]
        moved = with_ticks(self._candles, ticks, self._interval.seconds)
        return Look(moved[-MOST:], self._gaps(), ticks)

    def _read_ticks(self) -> list[Tick]:
        return [Tick(*row) for row in self._reader.rows(_TICKS, symbol=self._symbol, count=TICKS)]

    def _read_past(self) -> list[Candle]:
        """As many candles as a chart shows, where there are so many; nights and weekends without any are skipped."""
        seconds, found = self._interval.seconds, list[Candle]()
        before = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
        for _ in range(STEPS):
            newest = self._reader.rows(_BEFORE, symbol=self._symbol, before=_moment(before))
            if not newest:
                break
            until = newest[0][0] // seconds * seconds + seconds
            before = until - MOST * seconds
            found = self._read(before, until) + found
            if len(found) >= MOST // 2:
                break
        self._candles = found[-MOST:]
        return self._candles

    def _read_newest(self) -> list[Candle]:
        """From the last but one on: until a candle is over, it changes."""
        since = self._candles[-2:][0].start
        return self._read(since, datetime(2100, 1, 1, tzinfo=UTC).timestamp())

    def _read(self, since: float, until: float) -> list[Candle]:
        width = f"{self._interval.seconds} seconds"
        rows = self._reader.rows(_CANDLES, width=width, symbol=self._symbol, since=_moment(since), until=_moment(until))
        return [Candle(*row) for row in rows]

    def _read_gaps(self) -> list[Gap]:
        since = self._candles[0].start if self._candles else 0.0
        rows = self._reader.rows(_GAPS, symbol=self._symbol, since=_moment(since))
        return [Gap(start, end, cause or "unknown") for start, end, cause in reversed(rows)]


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# By way of JSON, since the column may be missing in a schema that has not been migrated yet.
_CANDLES = """
SELECT extract(epoch FROM bucket)::float8, open, high, low, close, ticks, (to_jsonb(c) ->> 'volume')::float8
FROM candles(%(width)s::interval, %(since)s, least(%(until)s, now() + interval '1 minute')) AS c
WHERE symbol = %(symbol)s ORDER BY bucket
"""

_TICKS = """
SELECT extract(epoch FROM time)::float8, extract(epoch FROM received_at)::float8, price, bid, ask, session, seq
FROM latest_ticks(%(symbol)s, %(count)s)
"""

_BEFORE = """
SELECT extract(epoch FROM time)::float8
FROM prices_real_time WHERE symbol = %(symbol)s AND time < least(%(before)s, now() + interval '1 minute')
ORDER BY time DESC LIMIT 1
"""

_GAPS = """
SELECT extract(epoch FROM since)::float8, extract(epoch FROM until)::float8, cause
FROM feed_gaps
WHERE (symbol = %(symbol)s OR symbol IS NULL) AND (until IS NULL OR until > %(since)s)
ORDER BY since DESC LIMIT 200
"""
