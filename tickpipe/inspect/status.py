"""What the pipeline looks like right now, read from Redis and the database; nothing is changed by looking."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from common.database.client import DatabaseClient
from common.errors import OutageError
from common.streams.group import Backlog, ConsumerGroup
from tickpipe.inspect.cached_query import CachedQuery
from tickpipe.inspect.sizes import Sizes

#: Minutes of candles that are read for each symbol.
MINUTES = 30
#: Seconds between two looks at the sizes, at least: they change slowly.
SIZES_EVERY = 10.0


class Candle(NamedTuple):
    """One minute of one symbol."""

    open: float
    high: float
    low: float
    close: float
    ticks: int


@dataclass(frozen=True)
class SymbolStatus:
    """The newest tick of a symbol, its age in seconds since it was received, and its candles, oldest first."""

    symbol: str
    price: float
    age: float
    candles: Sequence[Candle]

    @property
    def ticks(self) -> int:
        """Ticks in the minutes shown."""
        return sum(candle.ticks for candle in self.candles)


@dataclass(frozen=True)
class Status:
    """One look. Counts are since `begin` was called; latencies in seconds, from received to committed.

    `silent`: consumers that have asked for nothing lately. `note`: what is no trouble, and good to know.
    """

    received: int
    stored: int
    dead_letters: int
    backlog: int
    consumers: int
    rows_per_second: float
    latency_p50: float | None
    latency_p99: float | None
    symbols: Sequence[SymbolStatus]
    trouble: str | None
    groups: Mapping[str, Backlog] = field(default_factory=dict)
    sizes: Sizes | None = None
    silent: int = 0
    note: str = ""


def laggard(groups: Mapping[str, Backlog]) -> str | None:
    """The group that holds back trimming, where there are several: the one with the most left to do."""
    left = {name: backlog_left(group) for name, group in groups.items()}
    worst = max(left, key=left.__getitem__, default=None)
    return worst if worst and len(left) > 1 and left[worst] > 0 else None


class StatusReader:
    """Looks at the pipeline again and again; keeps what it needs to tell counts and rates since it began."""

    def __init__(
        self,
        stream: ConsumerGroup,
        store: DatabaseClient,
        clock: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        *,
        began: int | None = None,
        measure: Callable[[], Sizes | None] = lambda: None,
    ) -> None:
        """`clock` gives microseconds UTC. `began`: count what consumers told since then, not since now."""
        self._sizes = CachedQuery(measure, SIZES_EVERY, monotonic)
        self._stream = stream
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._appended_before = 0
        self._stored: list[tuple[float, int]] = []  # (monotonic seconds, rows stored) of the last looks
        self.began = clock() if began is None else began  # microseconds UTC
        self._last = Status(0, 0, 0, 0, 0, 0.0, None, None, (), None)

    def begin(self) -> None:
        """Count from here on. Raises OutageError."""
        self._stream.ensure_group()
        self._appended_before = self._stream.backlog().appended
        self.began = self._clock()

    def look(self) -> Status:
        """The pipeline now. Where a part is away, the last known figures and the trouble."""
        try:
            self._last = self._look()
        except OutageError as error:
            self._last = Status(**{**self._last.__dict__, "trouble": str(error)})
        return self._last

    def received(self) -> int:
        """Prices that came since it began; 0 where Redis does not say."""
        try:
            return self._stream.backlog().appended - self._appended_before
        except OutageError:
            return 0

    def left(self) -> int:
        """Entries that are not stored yet. Raises OutageError."""
        return backlog_left(self._stream.backlog())

    def _look(self) -> Status:
        groups = self._stream.groups()
        backlog = groups.get(self._stream.group) or self._stream.backlog()
        ours = [report for report in self._stream.statistics.read().values() if report["at"] >= self.began]
        fresh = [report for report in ours if report["at"] >= self._clock() - 3_000_000]
        stored = sum(report.get("stored", 0) for report in ours)
        return Status(
            received=backlog.appended - self._appended_before,
            stored=stored,
            dead_letters=sum(report.get("dead_letters", 0) for report in ours),
            backlog=backlog_left(backlog),
            consumers=backlog.consumers,
            rows_per_second=self._rate(stored),
            latency_p50=worst(fresh, "latency_p50"),
            latency_p99=worst(fresh, "latency_p99"),
            symbols=self._symbols(),
            trouble=None,
            groups=groups,
            sizes=self._sizes(),
            silent=backlog.idle,
            note="" if groups or self._stream.check() else no_stream(self._stream),
        )

    def _rate(self, stored: int) -> float:
        now = self._monotonic()
        recent = [look for look in self._stored if look[0] > now - 5.0]
        self._stored = [*(recent or self._stored[-1:]), (now, stored)]
        (first, before), (last, after) = self._stored[0], self._stored[-1]
        return (after - before) / (last - first) if last > first else 0.0

    def _symbols(self) -> list[SymbolStatus]:
        with self._store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute(_SYMBOLS, {"minutes": f"{MINUTES} minutes"})
            rows = cursor.fetchall()
        return [
            SymbolStatus(symbol, price, age, [Candle(*candle) for candle in candles or ()])
            for symbol, price, age, candles in rows
        ]


def backlog_left(backlog: Backlog) -> int:
    """Entries that this group has not stored yet."""
    return backlog.lag + backlog.pending


def no_stream(stream: ConsumerGroup) -> str:
    """In words: nobody has written it, or its name is not the one meant."""
    return f"there is no stream {stream.key!r} in this Redis yet: has its producer run, is PRICE_STREAM the same?"


def worst(reports: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The highest of these figures in the consumers' words; None where none has it."""
    return max((report[name] for report in reports if report.get(name) is not None), default=None)


# The symbols by a loose scan of the primary key (one step a symbol, not one a row), then two short looks at each. The
# newest tick is the one of latest_ticks(): a tick whose time is ahead of when it was received does not hide later ones.
_SYMBOLS = """
WITH RECURSIVE names AS (
    (SELECT symbol FROM prices_real_time ORDER BY symbol LIMIT 1)
    UNION ALL
    SELECT (SELECT p.symbol FROM prices_real_time p WHERE p.symbol > names.symbol ORDER BY p.symbol LIMIT 1)
    FROM names WHERE names.symbol IS NOT NULL
)
SELECT names.symbol, newest.price, extract(epoch FROM clock_timestamp() - newest.received_at)::float8, drawn.candles
FROM names
CROSS JOIN LATERAL latest_ticks(names.symbol, 1) AS newest
CROSS JOIN LATERAL (
    SELECT json_agg(json_build_array(open, high, low, close, ticks) ORDER BY bucket) AS candles
    FROM candles('1 minute', date_trunc('minute', newest.time) - %(minutes)s::interval,
                 newest.time + interval '1 second')
    WHERE symbol = names.symbol
) AS drawn
ORDER BY names.symbol
"""
