"""Ticks with difficult times and volumes, and their candles computed in plain Python."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import psycopg2
from psycopg2.extras import execute_values

from common.database.client import DatabaseClient
from common.database.migrations import migrate, read_migrations
from common.settings import Secret
from tests.support.pipeline import Database
from tests.support.timescaledb import refresh_aggregate

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Traded(NamedTuple):
    """The fields of a tick that candles use."""

    symbol: str
    exchange: str | None
    time: datetime
    received_at: datetime
    price: float
    day_volume: float | None
    size: float | None = None


class Candle(NamedTuple):
    """One row of candles_1m, candles_1h or candles_1d."""

    symbol: str
    bucket: datetime
    open: float
    high: float
    low: float
    close: float
    ticks: int
    volume: float | None


def make_ticks(seed: int, *, days: int = 3, count: int = 1500, start: datetime | None = None) -> list[Traded]:
    """Ticks of a stock, a coin on two exchanges and a currency pair, in order of receipt.

    Counters restart at midnight or within a day, are corrected downwards and are sometimes missing. Exchange times
    stray back by up to an hour. Some minutes, hours and a whole day have no ticks.
    """
    rng = random.Random(seed)
    start = start or datetime(2026, 3, 2, tzinfo=UTC)
    moments = sorted(
        start + timedelta(seconds=rng.randrange(days * 86_400) // rng.choice([1, 40]) % (days * 86_400))
        for _ in range(count)
    )
    counters: dict[tuple[str, str | None], float] = defaultdict(float)
    days_of: dict[tuple[str, str | None], int] = {}
    found = []
    for number, moment in enumerate(moments):
        symbol, exchange = rng.choice(
            [("AAPL", "NASDAQ"), ("BTC/USD", "Coinbase"), ("BTC/USD", "Kraken"), ("EUR/USD", None)]
        )
        key = symbol, exchange
        if days_of.setdefault(key, moment.day) != moment.day and rng.random() < 0.9:
            counters[key] = 0.0
            days_of[key] = moment.day
        counters[key] += rng.randrange(1, 50) * 0.25
        if rng.random() < 0.03:
            counters[key] = counters[key] * rng.choice([0.1, 0.4, 0.6, 0.9]) // 0.25 * 0.25
        time = moment.replace(microsecond=0)
        if rng.random() < 0.02:
            time -= timedelta(seconds=rng.randrange(3600))
        volume = None if symbol == "EUR/USD" or rng.random() < 0.1 else counters[key]
        received_at = moment + timedelta(microseconds=number)
        found.append(Traded(symbol, exchange, time, received_at, rng.randrange(1000) / 8, volume))
    return found


def with_sizes(seed: int, ticks: Iterable[Traded]) -> list[Traded]:
    """The ticks, some of them with a size, which may be invalid. Some bars have sizes and the next ones do not."""
    rng = random.Random(seed)
    return [
        tick._replace(size=rng.choice([*(eighths / 8 for eighths in range(1, 90)), -1.0, float("inf"), float("nan")]))
        if tick.exchange in {"Kraken", "NASDAQ"} and rng.random() < 0.3
        else tick
        for tick in ticks
    ]


def insert_ticks(database: Database, ticks: Sequence[Traded], *, session: int = 1, first: int = 1) -> None:
    """Store the ticks with numbers from `first`. Only if some have a size, the table needs this column."""
    rows: list[tuple[object, ...]]
    rows = [(one.time, one.symbol, one.price, one.day_volume, one.exchange, one.received_at, session, seq, one.size)
            for seq, one in enumerate(ticks, first)]  # fmt: skip
    names = "time, symbol, price, day_volume, exchange, received_at, session, seq, size"
    if all(tick.size is None for tick in ticks):
        rows, names = [row[:-1] for row in rows], names.removesuffix(", size")
    with database.connection.cursor() as cursor:
        execute_values(cursor, f"INSERT INTO prices_real_time ({names}) VALUES %s", rows, page_size=5000)


def candles(ticks: Iterable[Traded], width: timedelta) -> list[Candle]:
    """The candles of these ticks, ordered by symbol and time. Larger candles are computed from minutes."""
    bars = sorted(_minutes(ticks), key=lambda bar: (bar[1].symbol, bar[1].bucket, bar[0]))
    groups: dict[tuple[str, datetime], list[tuple[datetime, Candle, datetime]]] = defaultdict(list)
    for opened_at, bar, closed_at in bars:
        groups[bar.symbol, _floor(bar.bucket, width)].append((opened_at, bar, closed_at))
    result = []
    for (symbol, bucket), parts in sorted(groups.items()):
        volumes = [bar.volume for _, bar, _ in parts if bar.volume is not None]
        result.append(
            Candle(
                symbol,
                bucket,
                min(parts)[1].open,
                max(bar.high for _, bar, _ in parts),
                min(bar.low for _, bar, _ in parts),
                max(parts, key=lambda part: part[2])[1].close,
                sum(bar.ticks for _, bar, _ in parts),
                sum(volumes) if volumes else None,
            )
        )
    return result


def _minutes(ticks: Iterable[Traded]) -> list[tuple[datetime, Candle, datetime]]:
    """(first receipt, bar, last receipt) of each symbol, exchange and minute."""
    groups: dict[tuple[str, str, datetime], list[Traded]] = defaultdict(list)
    for tick in ticks:
        groups[tick.symbol, tick.exchange or "", _floor(tick.time, MINUTE)].append(tick)
    before: dict[tuple[str, str], tuple[float, datetime]] = {}  # the last count and its minute
    result = []
    for (symbol, exchange, bucket), parts in sorted(groups.items()):
        parts.sort(key=lambda tick: tick.received_at)
        counts = [tick.day_volume for tick in parts if tick.day_volume is not None and tick.day_volume >= 0]
        volume = None
        if counts:
            count, at = before.get((symbol, exchange), (counts[0], bucket))
            up_to, after = (max(counts), counts[-1]) if counts[-1] < counts[0] / 2 else (counts[-1], 0.0)
            volume = _rise(count, up_to, new_day=at.date() != bucket.date()) + after
            before[symbol, exchange] = counts[-1], bucket
        if sizes := [tick.size for tick in parts if tick.size is not None and 0 <= tick.size < math.inf]:
            volume = sum(sizes)
        prices = [tick.price for tick in parts]
        bar = Candle(symbol, bucket, prices[0], max(prices), min(prices), prices[-1], len(prices), volume)
        result.append((parts[0].received_at, bar, parts[-1].received_at))
    return result


def _rise(before: float, after: float, *, new_day: bool) -> float:
    if after >= before:
        return after - before
    return after if new_day or after < before / 2 else 0.0


def _floor(moment: datetime, width: timedelta) -> datetime:
    return moment - (moment - EPOCH) % width


COLUMNS = "symbol, bucket, open, high, low, close, ticks, volume"


VIEWS = {"candles_1m": MINUTE, "candles_1h": HOUR, "candles_1d": DAY}


START = datetime(2026, 3, 2, tzinfo=UTC)


SECOND = timedelta(seconds=1)


def store_of(database: Database) -> DatabaseClient:
    return DatabaseClient(Secret(database.url))


def refresh(database: Database) -> None:
    """Refresh all aggregates. Does nothing without TimescaleDB."""
    if database.query("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'"):
        for width in ("1m", "1h", "1d"):
            refresh_aggregate(database, width)


def found(database: Database, view: str) -> list[Candle]:
    return [Candle(*row) for row in database.query(f"SELECT {COLUMNS} FROM {view} ORDER BY symbol, bucket")]


def assert_candles(database: Database, expected: list[Traded]) -> None:
    """Check that all views have exactly these candles. Volumes are quarters, so sums are exact."""
    for view, width in VIEWS.items():
        assert found(database, view) == candles(expected, width), view


def expire(database: Database, before: datetime) -> None:
    database.query("CALL expire_ticks(%s)", before)


def compress(database: Database) -> None:
    for (chunk,) in database.query("SELECT show_chunks('prices_real_time')::text"):
        database.query("SELECT compress_chunk(%s)", chunk)


def make_plain(database: Database) -> None:
    """Apply the schema without TimescaleDB."""
    with closing(psycopg2.connect(database.url)) as connection, connection:
        migrate(connection, [each for each in read_migrations() if not each.timescaledb])
