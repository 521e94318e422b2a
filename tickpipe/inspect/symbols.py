"""The prices of symbols, read from the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from tickpipe.inspect.database import DatabaseReader
from tickpipe.inspect.snapshot import Candle, Gap, SymbolStatus, Tick

#: Minutes of candles that are read for each symbol.
MINUTES = 30


class NewestTick(NamedTuple):
    """The newest tick of a symbol. `time` (the exchange's) and `received`: seconds since 1970."""

    symbol: str
    price: float
    time: float
    received: float


class SymbolReader:
    """The queries behind prices and charts. Times are seconds since 1970. All raise OutageError."""

    def __init__(self, database: DatabaseReader) -> None:
        self._rows = database.rows

    def names(self) -> list[str]:
        """All symbols, sorted."""
        return [name for (name,) in self._rows(SYMBOL_NAMES + "SELECT symbol FROM names WHERE symbol IS NOT NULL")]

    def statuses(self) -> list[SymbolStatus]:
        """The newest tick and the last MINUTES of every symbol, sorted by name."""
        return [
            SymbolStatus(symbol, price, age, [Candle(*candle) for candle in candles or ()])
            for symbol, price, age, candles in self._rows(_STATUSES, minutes=f"{MINUTES} minutes")
        ]

    def newest(self, names: Sequence[str], since: float) -> list[NewestTick]:
        """The newest tick of each symbol. Ticks before `since` are not searched."""
        return [NewestTick(*row) for row in self._rows(_NEWEST, names=list(names), since=_datetime(since))]

    def closes(self, newest: Mapping[str, float]) -> dict[str, dict[int, float]]:
        """By symbol and minute since 1970: the last price of each of the MINUTES up to `newest`, by symbol."""
        closes: dict[str, dict[int, float]] = {symbol: {} for symbol in newest}
        rows = self._rows(
            _CLOSES,
            names=list(newest),
            newest=[_datetime(at // 60 * 60) for at in newest.values()],
            minutes=MINUTES,
            oldest=_datetime(min(newest.values()) - (MINUTES + 1) * 60),
        )
        for name, minute, price in rows:
            closes[name][minute] = price
        return closes

    def latest_ticks(self, symbol: str, count: int) -> list[Tick]:
        """The latest ticks, newest first."""
        return [Tick(*row) for row in self._rows(_TICKS, symbol=symbol, count=count)]

    def last_time_before(self, symbol: str, before: float) -> float | None:
        """The time of the last tick before `before`; None if there is none."""
        rows = self._rows(_LAST_TIME, symbol=symbol, before=_datetime(before))
        return rows[0][0] if rows else None

    def candles(self, symbol: str, seconds: int, since: float, until: float) -> list[Candle]:
        """Candles of a width in seconds, oldest first."""
        rows = self._rows(
            _CANDLES, width=f"{seconds} seconds", symbol=symbol, since=_datetime(since), until=_datetime(until)
        )
        return [Candle(*row) for row in rows]

    def gaps(self, symbol: str, since: float) -> list[Gap]:
        """The newest 200 gaps that end after `since`, oldest first."""
        rows = self._rows(_GAPS, symbol=symbol, since=_datetime(since))
        return [Gap(start, end, cause or "unknown") for start, end, cause in reversed(rows)]


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# All symbols by a loose index scan: one step of the primary key per symbol, not per row. The last row is NULL.
SYMBOL_NAMES = """
WITH RECURSIVE names AS (
    (SELECT symbol FROM prices_real_time ORDER BY symbol LIMIT 1)
    UNION ALL
    SELECT (SELECT p.symbol FROM prices_real_time p WHERE p.symbol > names.symbol ORDER BY p.symbol LIMIT 1)
    FROM names WHERE names.symbol IS NOT NULL
)
"""

# latest_ticks() ignores the time of a tick that is ahead of its arrival: such a tick does not hide later ones.
_STATUSES = (
    SYMBOL_NAMES
    + """
SELECT names.symbol, newest.price, extract(epoch FROM clock_timestamp() - newest.received_at)::float8, drawn.candles
FROM names
CROSS JOIN LATERAL latest_ticks(names.symbol, 1) AS newest
CROSS JOIN LATERAL (
    SELECT json_agg(json_build_array(extract(epoch FROM bucket)::float8, open, high, low, close, ticks)
                    ORDER BY bucket) AS candles
    FROM candles('1 minute', date_trunc('minute', newest.time) - %(minutes)s::interval,
                 newest.time + interval '1 second')
    WHERE symbol = names.symbol
) AS drawn
ORDER BY names.symbol
"""
)

_NEWEST = """
SELECT names.symbol, newest.price, extract(epoch FROM newest.time)::float8,
       extract(epoch FROM newest.received_at)::float8
FROM unnest(%(names)s::text[]) AS names (symbol)
CROSS JOIN LATERAL latest_ticks(names.symbol, 1, %(since)s) AS newest
"""

# One index look-up per minute: the rows in between are not read.
_CLOSES = """
SELECT names.symbol, (extract(epoch FROM minute.start) / 60)::int, last.price
FROM unnest(%(names)s::text[], %(newest)s::timestamptz[]) AS names (symbol, newest)
CROSS JOIN LATERAL (
    SELECT names.newest - step * interval '1 minute' AS start FROM generate_series(0, %(minutes)s - 1) AS step
) AS minute
CROSS JOIN LATERAL (
    SELECT price FROM prices_real_time p
    WHERE p.symbol = names.symbol AND p.time >= %(oldest)s
      AND p.time >= minute.start AND p.time < minute.start + interval '1 minute'
    ORDER BY p.time DESC, p.session DESC, p.seq DESC LIMIT 1
) AS last
"""

_TICKS = """
SELECT extract(epoch FROM time)::float8, extract(epoch FROM received_at)::float8, price, bid, ask, session, seq
FROM latest_ticks(%(symbol)s, %(count)s)
"""

_LAST_TIME = """
SELECT extract(epoch FROM time)::float8
FROM prices_real_time WHERE symbol = %(symbol)s AND time < least(%(before)s, now() + interval '1 minute')
ORDER BY time DESC LIMIT 1
"""

# `volume` is read through JSON: a schema that is not migrated yet lacks the column.
_CANDLES = """
SELECT extract(epoch FROM bucket)::float8, open, high, low, close, ticks, (to_jsonb(c) ->> 'volume')::float8
FROM candles(%(width)s::interval, %(since)s, least(%(until)s, now() + interval '1 minute')) AS c
WHERE symbol = %(symbol)s ORDER BY bucket
"""

_GAPS = """
SELECT extract(epoch FROM since)::float8, extract(epoch FROM until)::float8, cause
FROM feed_gaps_between(%(since)s, one_symbol => %(symbol)s)
ORDER BY since DESC LIMIT 200
"""
