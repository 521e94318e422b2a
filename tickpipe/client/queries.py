"""The questions in SQL, and the types of their answers.

A time is a timestamp in microseconds, UTC. A column can be null unless it says otherwise here.
"""

from __future__ import annotations

import pyarrow as pa

from tickpipe.inspect.past import COLUMNS

_TIME, _TEXT, _NUMBER, _INTEGER = pa.timestamp("us", "UTC"), pa.string(), pa.float64(), pa.int64()


def _schema(required: dict[str, pa.DataType], optional: dict[str, pa.DataType]) -> dict[str, pa.Field]:
    return {name: pa.field(name, kind, nullable=False) for name, kind in required.items()} | {
        name: pa.field(name, kind) for name, kind in optional.items()
    }


_TICK = _schema(
    {"time": _TIME, "symbol": _TEXT, "price": _NUMBER, "received_at": _TIME, "session": _INTEGER, "seq": _INTEGER},
    {"day_volume": _NUMBER, "bid": _NUMBER, "ask": _NUMBER, "exchange": _TEXT, "size": _NUMBER, "side": _TEXT,
     "trade_id": _INTEGER, "source": _TEXT},
)  # fmt: skip
TICK_SCHEMA = pa.schema([_TICK[name] for name in COLUMNS])
#: The ticks of one symbol, in the order of the primary key: the database reads an index and sorts nothing.
TICKS = f"""
SELECT {", ".join(COLUMNS)}
FROM prices_real_time
WHERE symbol = %(symbol)s AND time >= %(since)s AND time < %(until)s
ORDER BY time, session, seq
"""

#: The time before which retention has dropped the ticks; no row if it has dropped none.
HORIZON = "SELECT at FROM candles_horizon"

LAST_COLUMNS = ("symbol", "time", "price", "bid", "ask", "exchange", "received_at", "session", "seq")
LAST_SCHEMA = pa.schema([_TICK[name] for name in LAST_COLUMNS])
LAST = """
SELECT names.symbol, t.time, t.price, t.bid, t.ask, t.exchange, t.received_at, t.session, t.seq
FROM unnest(%(symbols)s::text[]) AS names (symbol)
CROSS JOIN LATERAL latest_ticks(names.symbol, 1, %(since)s) AS t
ORDER BY names.symbol COLLATE "C"
"""

CANDLE_SCHEMA = pa.schema(
    _schema(
        {"symbol": _TEXT, "bucket": _TIME},
        {"open": _NUMBER, "high": _NUMBER, "low": _NUMBER, "close": _NUMBER, "ticks": _INTEGER, "volume": _NUMBER},
    ).values()
)
#: Where candles come from. The width is in seconds: a day of an interval would be 23 or 25 hours long in a session's
#: time zone. The views are stored on TimescaleDB, so they are faster for long spans.
_SOURCES = {
    "": "candles(%(width)s * interval '1 second', %(since)s, %(until)s)",
    "1h": "candles_1h",
    "1d": "candles_1d",
}
_FOUND = """
SELECT symbol, bucket, open, high, low, close, ticks, volume
FROM {source}
WHERE symbol = ANY (%(symbols)s::text[]) AND bucket >= %(since)s AND bucket < %(until)s
"""
_EACH = """
WITH found AS MATERIALIZED ({found}), each AS (
    SELECT s.symbol, bucket
    FROM (SELECT symbol, min(bucket) AS first, max(bucket) AS last FROM found GROUP BY symbol) AS s
    CROSS JOIN LATERAL generate_series(s.first, s.last, %(width)s * interval '1 second') AS bucket
)
"""
_WITH_GAPS = """
SELECT symbol, bucket, open, high, low, close, coalesce(ticks, 0) AS ticks, volume
FROM each LEFT JOIN found USING (symbol, bucket)
"""
#: `carried`: the number of candles up to this interval, so all intervals that one candle fills have the same number.
_CARRIED = """
SELECT symbol, bucket, coalesce(open, last) AS open, coalesce(high, last) AS high, coalesce(low, last) AS low,
       last AS close, coalesce(ticks, 0) AS ticks, CASE WHEN ticks IS NULL THEN 0 ELSE volume END AS volume
FROM (
    SELECT *, max(close) OVER (PARTITION BY symbol, carried) AS last
    FROM (
        SELECT symbol, bucket, open, high, low, close, ticks, volume,
               count(close) OVER (PARTITION BY symbol ORDER BY bucket) AS carried
        FROM each LEFT JOIN found USING (symbol, bucket)
    ) AS counted
) AS filled
"""
#: The ways to fill gaps.
FILLS = {None: "{found}", "gaps": _EACH + _WITH_GAPS, "previous": _EACH + _CARRIED}


def candles(fill: str | None, view: str = "") -> str:
    """The query for candles with this way to fill gaps, from the view of "1h" or "1d", or of any width."""
    found = _FOUND.format(source=_SOURCES[view])
    return FILLS[fill].format(found=found) + 'ORDER BY symbol COLLATE "C", bucket'


GAP_SCHEMA = pa.schema(
    [pa.field("symbol", _TEXT), pa.field("since", _TIME, nullable=False), pa.field("until", _TIME),
     pa.field("cause", _TEXT)]
)  # fmt: skip
GAPS = """
SELECT symbol, since, until, cause
FROM feed_gaps_between(%(since)s, %(until)s)
WHERE symbol IS NULL OR %(symbols)s::text[] IS NULL OR symbol = ANY (%(symbols)s::text[])
ORDER BY since, symbol COLLATE "C"
"""

INSTRUMENT_SCHEMA = pa.schema(
    _schema(
        {"symbol": _TEXT},
        {"type": _TEXT, "exchange": _TEXT, "mic_code": _TEXT, "currency": _TEXT, "currency_base": _TEXT,
         "currency_quote": _TEXT, "first_seen": _TIME, "last_seen": _TIME},
    ).values()
)  # fmt: skip
INSTRUMENTS = f'SELECT {", ".join(INSTRUMENT_SCHEMA.names)} FROM instruments ORDER BY symbol COLLATE "C", exchange'
