"""The database of a reader of TimescaleDB's tutorial, with the rows that its script may have stored."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from psycopg2.extras import execute_values

from tests.support.candles import Traded
from tests.support.pipeline import Database

#: time, symbol, price, day_volume.
Stored = tuple[datetime | None, str | None, float | None, int | None]

#: The reasons that `tickpipe import` gives.
NO_PRICE, NO_TIME, NO_SYMBOL = "price is missing", "time is missing", "symbol is missing"
NOT_FINITE, DOUBLE = "price is not a finite number", "exact double of another row"
WRONG_TIME = "time is not between 1970 and 2100"
MICROSECOND = timedelta(microseconds=1)


def make_rows(seed: int, count: int) -> tuple[list[Stored], dict[str, int]]:
    """Rows in the order of insertion, and how many of them are not ticks, by reason. Several share a second."""
    rng = random.Random(seed)
    at = datetime(2026, 3, 2, 22, tzinfo=UTC)
    volumes = {"AAPL": 0, "BTC/USD": 40_000, "EUR/USD": None}
    rows: list[Stored] = []
    for _ in range(count):
        at += timedelta(seconds=rng.choice([0, 0, 0, 1, 1, 2, 40]))
        symbol = rng.choice(list(volumes))
        volume = volumes[symbol]
        if volume is not None:
            volumes[symbol] = volume = volume + rng.randrange(1, 20) if rng.random() > 0.001 else 0
        rows.append((at, symbol, 100 + rng.randrange(10_000) / 64, volume))
    rows = list(dict.fromkeys(rows))
    invalid: dict[str, list[Stored]] = {
        NO_PRICE: [(at, symbol, None, volume) for at, symbol, _, volume in rng.sample(rows, 7)],
        NO_SYMBOL: [(at, None, price, volume) for at, _, price, volume in rng.sample(rows, 5)],
        NOT_FINITE: [(at, symbol, float("nan"), volume) for at, symbol, _, volume in rng.sample(rows, 3)],
        DOUBLE: rng.sample(rows, 11),
        WRONG_TIME: [(datetime(2150, 1, 1, tzinfo=UTC), "AAPL", 1.0, 1)],
    }
    for each in (row for group in invalid.values() for row in group):
        # A double comes after its original. The others may be anywhere.
        rows.insert(rng.randrange(rows.index(each) + 1 if each in rows else 0, len(rows) + 1), each)
    return rows, {reason: len(group) for reason, group in invalid.items()}


def follow_tutorial(database: Database, rows: Sequence[Stored], *, table: str = "prices_real_time") -> None:
    """Create the table of the tutorial, a hypertable if there is TimescaleDB, and insert these rows."""
    database.query(
        f"CREATE TABLE {table} (time timestamptz NOT NULL, symbol text, price double precision, day_volume int)"
    )
    if database.query("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"):
        database.query("CREATE EXTENSION IF NOT EXISTS timescaledb")
        database.query(f"SELECT create_hypertable('{table}', 'time')")
    with database.connection.cursor() as cursor:
        execute_values(cursor, f"INSERT INTO {table} VALUES %s", rows, page_size=2000)


def expected_ticks(rows: Sequence[Stored]) -> list[Traded]:
    """The ticks of these rows in order of time, in plain Python."""
    good = [
        (at, symbol, price, volume)
        for at, symbol, price, volume in rows
        if at and at.year < 2100 and symbol and price is not None and price == price
    ]
    ticks: list[Traded] = []
    received = datetime(1970, 1, 1, tzinfo=UTC)
    for at, symbol, price, volume in dict.fromkeys(sorted(good, key=lambda row: row[0])):
        received = max(at, received + MICROSECOND)
        ticks.append(Traded(symbol, None, at, received, price, None if volume is None else float(volume)))
    return ticks
