"""Reads gaps from the database and stores bars (sql/0008_backfill.sql)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from psycopg2.extras import execute_values

from common.database.client import DatabaseClient
from tickpipe.backfill.plan import Call, Gap, final_minutes, minutes, moment
from tickpipe.backfill.rest import Bar
from tickpipe.ranges import Range


def read(store: DatabaseClient, since: datetime) -> tuple[list[Gap], dict[str, list[Range]]]:
    """The gaps from `since` on, and the minutes that are done by symbol. Raises OutageError, ConfigurationError."""
    done: defaultdict[str, list[Range]] = defaultdict(list)
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT symbol, exchange, since, until FROM backfill_gaps_from(%s) ORDER BY symbol, since", (since,)
        )
        gaps = [Gap(*row) for row in cursor.fetchall()]
        cursor.execute("SELECT symbol, since, until FROM backfill_done")
        for symbol, since, until in cursor.fetchall():
            done[symbol].append(minutes(since, until))
    return gaps, done


def keep(store: DatabaseClient, call: Call, bars: Iterable[Bar], now: datetime) -> int:
    """Store the wanted bars and the request in one transaction. Returns the number of new bars. Raises OutageError."""
    wanted = {moment(minute) for first, last in call.wanted for minute in range(first, last + 1)}
    rows = [(call.symbol, *bar) for bar in bars if bar.at in wanted]
    requests = [(call.symbol, moment(first), moment(last + 1)) for first, last in final_minutes(call.wanted, now)]
    with store.transaction() as connection, connection.cursor() as cursor:
        if requests:
            execute_values(cursor, _REQUESTS, requests)
        if rows:
            execute_values(cursor, _BARS, rows, page_size=len(rows))  # one page, so that rowcount counts all rows
        return cursor.rowcount if rows else 0


_BARS = "INSERT INTO candles_backfill (symbol, bucket, open, high, low, close, volume) VALUES %s ON CONFLICT DO NOTHING"
_REQUESTS = "INSERT INTO candles_backfill_requests (symbol, since, until) VALUES %s ON CONFLICT DO NOTHING"
