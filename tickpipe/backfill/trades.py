"""Requests the trades that an exchange has numbered and not sent, by number, and stores them as ticks.

Each has its own number as `seq` in session 0, which no producer has, and the exchange's time as `received_at`, so that
it has its place among the ticks of its minute.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import NamedTuple

from psycopg2.extras import execute_values

from common.database.client import DatabaseClient
from common.errors import ConfigurationError, OutageError, TickpipeError
from common.tick import Tick, validation_error
from producer.feeds.vendor import Event, Vendor, decode
from tickpipe.backfill.rate_limit import RateLimiter
from tickpipe.backfill.rest import OutOfCreditsError
from tickpipe.backfill.rest_client import RestClient

logger = logging.getLogger("tickpipe.backfill")


class Missing(NamedTuple):
    """Trades of one symbol that are missing, or some of them are."""

    symbol: str
    first: int
    last: int


class RefusedRequestError(TickpipeError):
    """The exchange refuses a request."""


def read(store: DatabaseClient, vendor: Vendor, since: datetime) -> list[Missing]:
    """The trades of this exchange that are missing since then. Raises OutageError, ConfigurationError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT symbol, first_id, last_id FROM skipped_trades(first_session_of(%s)) "
            "WHERE exchange = %s AND until >= %s ORDER BY symbol, first_id",
            (since, vendor.exchange, since),
        )
        return [Missing(*row) for row in cursor.fetchall()]


class TradesRest:
    """Requests trades of one exchange, without a key."""

    def __init__(self, vendor: Vendor, url: str | None, environ: Mapping[str, str], limiter: RateLimiter) -> None:
        """`url`: another base URL than the exchange's. `environ` has the proxy variables.

        Raises ConfigurationError if the exchange answers no requests for trades by number, or for an invalid URL.
        """
        if not vendor.rest_url:
            raise ConfigurationError(
                f"{vendor.title} answers no requests for trades by number: use coinbase or binance"
            )
        self._vendor = vendor
        self._limiter = limiter
        self._client = RestClient(vendor.rest_url if url is None else url, environ, example=vendor.rest_url)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def trades(self, missing: Missing) -> list[Event]:
        """One answer's trades, in any order; perhaps not all. Raises OutageError, RefusedRequestError, StoppedError."""
        return self._limiter.call(partial(self._request, missing))

    def _request(self, missing: Missing) -> list[Event]:
        vendor = self._vendor
        path = vendor.trades_path(vendor.spell(missing.symbol), missing.first, missing.last)
        try:
            reply = self._client.get(path)
        except OSError as error:
            raise OutageError(
                f"{vendor.title} does not answer{self._client.route} ({type(error).__name__})"
            ) from None  # its text may contain the password of a proxy
        if reply.status in {418, 429}:
            raise OutOfCreditsError(f"{vendor.title} says {reply.status}: too many requests")
        if not reply.ok:
            kind = RefusedRequestError if reply.status < 500 else OutageError
            raise kind(f"{vendor.title} says {reply.status} to a request for {missing.symbol}")
        return list(vendor.trades(decode(reply.body), missing.symbol))


def repair(
    vendor: Vendor,
    missing: Sequence[Missing],
    request: Callable[[Missing], Sequence[Event]],
    store: DatabaseClient,
    result: Counter[str],
    progress: Callable[[int, int, str], object],
) -> None:
    """Request and store these trades. Adds to `result` the new rows by symbol. Raises what `request` raises."""
    for number, each in enumerate(missing):
        progress(number, len(missing), f"requesting trades of {each.symbol}")
        for ticks in _answers(vendor, each, request):
            result[each.symbol] += keep(store, ticks)


def _answers(vendor: Vendor, missing: Missing, request: Callable[[Missing], Sequence[Event]]) -> Iterator[list[Tick]]:
    """The ticks of each answer, until the range is complete or an answer has nothing of it."""
    left = missing
    while left.first <= left.last:
        ticks = [vendor.parse(event, 0, 0, 0) for event in request(left)]
        good = [tick for tick in ticks if tick.trade_id.isdecimal() and validation_error(tick) is None]
        found = {int(tick.trade_id): tick for tick in good if left.first <= int(tick.trade_id) <= left.last}
        if not found:
            logger.warning(
                "backfill: %s has no trades %d to %d of %s", vendor.title, left.first, left.last, missing.symbol
            )
            return
        yield list(found.values())
        left = left._replace(last=min(found) - 1) if vendor.newest_first else left._replace(first=max(found) + 1)


def keep(store: DatabaseClient, ticks: Sequence[Tick]) -> int:
    """Store these trades, each once, however often it comes. Returns the number of new rows. Raises OutageError."""
    rows = [(t.symbol, t.time, t.price, t.exchange, t.trade_id, t.size or None, t.side or None) for t in ticks]
    with store.transaction() as connection, connection.cursor() as cursor:
        execute_values(cursor, _TRADES, rows, page_size=len(rows))  # one page, so that rowcount counts all rows
        return cursor.rowcount


_TRADES = """
INSERT INTO prices_real_time
    (symbol, time, price, exchange, received_at, session, seq, size, side, trade_id, source)
SELECT t.symbol, to_timestamp(t.time), t.price, t.exchange, to_timestamp(t.time), 0, t.trade_id, t.size, t.side,
       t.trade_id, 'backfill'
FROM (SELECT v.symbol, v.time::float8 AS time, v.price::float8 AS price, v.exchange, v.trade_id::bigint AS trade_id,
             v.size::float8 AS size, v.side
      FROM (VALUES %s) AS v (symbol, time, price, exchange, trade_id, size, side)) AS t
WHERE NOT EXISTS (
    SELECT FROM prices_real_time AS p
    WHERE p.symbol = t.symbol AND p.time = to_timestamp(t.time) AND p.exchange = t.exchange AND p.trade_id = t.trade_id
)
ON CONFLICT DO NOTHING
"""
