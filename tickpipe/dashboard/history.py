"""The data of a symbol's chart: candles, gaps and the latest ticks."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from tickpipe.inspect.cached_query import CachedQuery
from tickpipe.inspect.snapshot import Candle, Gap, Tick
from tickpipe.inspect.symbols import SymbolReader

#: Candles of a chart, at most.
MAX_CANDLES = 150
#: Ticks in the list of the latest ones.
LATEST_TICKS = 30
#: Charts that are kept, so that browsers with the same chart share its queries.
MAX_CHARTS = 24
#: Queries for the past of a symbol, at most. Each skips one period without prices, such as a night.
MAX_STEPS = 4
#: Seconds that a tick's time may be ahead of its arrival, as in latest_ticks() of sql/0020.
MAX_AHEAD = 60.0
#: Seconds between two readings of a chart's past. They show ticks that were stored late.
PAST_EVERY = 60.0
#: The end of "until now", in seconds since 1970.
_FAR_FUTURE = datetime(2100, 1, 1, tzinfo=UTC).timestamp()


class Interval(NamedTuple):
    """The width of a candle in seconds."""

    name: str
    seconds: int


_WIDTHS = {"1m": 60, "5m": 300, "1h": 3600, "1d": 86_400}
INTERVALS = {name: Interval(name, seconds) for name, seconds in _WIDTHS.items()}


@dataclass(frozen=True)
class ChartData:
    """Candles and gaps, oldest first; ticks, newest first."""

    candles: Sequence[Candle]
    gaps: Sequence[Gap]
    ticks: Sequence[Tick]


def with_ticks(candles: Sequence[Candle], ticks: Sequence[Tick], seconds: int) -> list[Candle]:
    """The candles, continued by the latest ticks (newest first). Ticks that a candle contains already change nothing.

    Ignores a tick whose time is ahead of its arrival: its candle would stay the last one. `seconds`: of a candle.
    """
    result = list(candles)
    for tick in reversed([tick for tick in ticks if tick.time <= tick.received + MAX_AHEAD]):
        start = tick.time // seconds * seconds
        last = result[-1] if result else None
        if last is None or start > last.start:
            result.append(Candle(start, tick.price, tick.price, tick.price, tick.price, 1, None))
        elif start == last.start:
            high, low = max(last.high, tick.price), min(last.low, tick.price)
            count = last.ticks + (len(result) > len(candles))  # candles of the database have counted their ticks
            result[-1] = last._replace(high=high, low=low, close=tick.price, ticks=count)
    return result


class Charts:
    """Reads charts, one symbol at a time, for all browsers together. Thread-safe."""

    def __init__(self, symbols: SymbolReader, *, every: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`every`: seconds between two readings of one chart, at least."""
        self._symbols = symbols
        self._every = every
        self._monotonic = monotonic
        self._series: OrderedDict[tuple[str, str], _Series] = OrderedDict()

    def read(self, symbol: str, interval: Interval) -> ChartData:
        """The chart now. Raises OutageError."""
        key = (symbol, interval.name)
        series = self._series.get(key)
        if series is None:
            series = _Series(self._symbols, symbol, interval, self._every, self._monotonic)
        self._series[key] = series
        self._series.move_to_end(key)
        while len(self._series) > MAX_CHARTS:
            self._series.popitem(last=False)
        return series.read()


class _Series:
    """One symbol's candles of one width. Reads the past now and then, the newest two candles each time."""

    def __init__(
        self, symbols: SymbolReader, symbol: str, interval: Interval, every: float, monotonic: Callable[[], float]
    ) -> None:
        self._symbols = symbols
        self._symbol = symbol
        self._interval = interval
        self._past = CachedQuery(self._read_past, PAST_EVERY, monotonic)
        self._newest = CachedQuery(self._read_newest, every, monotonic)
        self._ticks = CachedQuery(lambda: symbols.latest_ticks(symbol, LATEST_TICKS), every, monotonic)
        self._gaps = CachedQuery(self._read_gaps, 5.0, monotonic)
        self._candles: list[Candle] = []
        self._lock = threading.Lock()

    def read(self) -> ChartData:
        with self._lock:
            ticks = self._ticks()
            past = self._past()
            fresh = self._newest() if past else []
            fresh_since = fresh[0].start if fresh else float("inf")
            self._candles = [*(candle for candle in past if candle.start < fresh_since), *fresh]
            continued = with_ticks(self._candles, ticks, self._interval.seconds)
            return ChartData(continued[-MAX_CANDLES:], self._gaps(), ticks)

    def _read_past(self) -> list[Candle]:
        """Up to MAX_CANDLES candles. Nights and weekends without prices are skipped."""
        seconds, found = self._interval.seconds, list[Candle]()
        before = _FAR_FUTURE
        for _ in range(MAX_STEPS):
            newest = self._symbols.last_time_before(self._symbol, before)
            if newest is None:
                break
            until = newest // seconds * seconds + seconds
            before = until - MAX_CANDLES * seconds
            found = self._symbols.candles(self._symbol, seconds, before, until) + found
            if len(found) >= MAX_CANDLES // 2:
                break
        self._candles = found[-MAX_CANDLES:]
        return self._candles

    def _read_newest(self) -> list[Candle]:
        """The last two candles and later ones: a candle changes until its time is over."""
        since = self._candles[-2:][0].start
        return self._symbols.candles(self._symbol, self._interval.seconds, since, _FAR_FUTURE)

    def _read_gaps(self) -> list[Gap]:
        return self._symbols.gaps(self._symbol, self._candles[0].start if self._candles else 0.0)
