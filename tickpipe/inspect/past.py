"""Reads stored ticks in the order of their receipt."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Any

from common.database.client import DatabaseClient

#: Rows that are read at once.
PORTION = 10_000
#: The columns of a row.
COLUMNS = (
    "time", "symbol", "price", "day_volume", "bid", "ask", "exchange", "size", "side", "trade_id", "received_at",
    "session", "seq", "source",
)  # fmt: skip
_PAST = """
DECLARE past NO SCROLL CURSOR WITH HOLD FOR
SELECT time, symbol, price, day_volume, bid, ask, exchange, size, side, trade_id, received_at, session, seq, source
FROM prices_real_time
WHERE time >= %(since)s AND time < %(until)s AND (%(symbols)s::text[] IS NULL OR symbol = ANY (%(symbols)s::text[]))
ORDER BY received_at, session, seq, symbol COLLATE "C"
"""


def read_past(
    database: DatabaseClient, since: datetime, until: datetime, symbols: Collection[str] | None
) -> Iterator[list[tuple[Any, ...]]]:
    """The ticks whose time is in a span, of these symbols or of all, in portions. They are of one snapshot.

    The server keeps the sorted rows until the connection is closed, so no transaction stays open. A pooler must keep
    the connection, too: session mode. Raises OutageError, ConfigurationError.
    """
    wanted = {"since": since, "until": until, "symbols": None if symbols is None else list(symbols)}
    with database.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(_PAST, wanted)
    while True:
        with database.autocommit() as connection, connection.cursor() as cursor:
            cursor.execute("FETCH %s FROM past", (PORTION,))
            rows = cursor.fetchall()
        if not rows:
            return
        yield rows
