"""Gap backfill: the vendor's one-minute bars for the minutes in which the feed was blind (sql/0008).

First the plan, which is pure: gaps → calls. A minute is its number since 1970, UTC; spans of minutes are half-open.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from psycopg2.extras import execute_values

from common.database.client import DatabaseClient
from tickpipe.backfill.plan import _EPOCH, _FOREVER, _MINUTE, BAR_FINAL_AFTER, Call, Gap, Span, minus, minutes, moment
from tickpipe.backfill.rest import Bar

logger = logging.getLogger("tickpipe.backfill")


def read(store: DatabaseClient) -> tuple[list[Gap], dict[str, list[Span]]]:
    """The gaps there have been, and the minutes that are done, by symbol. Raises OutageError, ConfigurationError."""
    done: defaultdict[str, list[Span]] = defaultdict(list)
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT symbol, exchange, since, until FROM backfill_gaps ORDER BY symbol, since")
        gaps = [Gap(*row) for row in cursor.fetchall()]
        cursor.execute("SELECT symbol, since, until FROM backfill_done")
        for symbol, since, until in cursor.fetchall():
            done[symbol].append(minutes(since, until))
    return gaps, done


def keep(store: DatabaseClient, call: Call, bars: Iterable[Bar], now: datetime) -> int:
    """Store what the call wanted, and that it was answered, in one transaction; returns the bars that are new.

    Raises OutageError.
    """
    wanted = {moment(minute) for span in call.wanted for minute in range(*span)}
    rows = [(call.symbol, *bar) for bar in bars if bar.at in wanted]
    settled = minus(call.wanted, [Span((now - _EPOCH) // _MINUTE - BAR_FINAL_AFTER, _FOREVER)])
    asked = [(call.symbol, moment(since), moment(until)) for since, until in settled]
    with store.transaction() as connection, connection.cursor() as cursor:
        if asked:
            execute_values(cursor, _ASKED, asked)
        if rows:
            execute_values(cursor, _BARS, rows, page_size=len(rows))  # rowcount is the last page's
        return cursor.rowcount if rows else 0


_BARS = "INSERT INTO candles_backfill (symbol, bucket, open, high, low, close, volume) VALUES %s ON CONFLICT DO NOTHING"
_ASKED = "INSERT INTO candles_backfill_requests (symbol, since, until) VALUES %s ON CONFLICT DO NOTHING"
