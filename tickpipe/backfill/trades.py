"""Requests the trades that an exchange has numbered and that are not stored, and stores them as ticks.

Each has its own number as `seq` in session 0, which no producer has, and the exchange's time as `received_at`, so that
it has its place among the ticks of its minute.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import NamedTuple

from psycopg2.extras import execute_values

from common.database.client import DatabaseClient
from common.errors import ConfigurationError, OutageError, TickpipeError
from common.tick import Tick, validation_error
from producer.feeds.vendor import Event, TradeRange, Vendor, decode
from tickpipe.backfill.rate_limit import RateLimiter
from tickpipe.backfill.rest import OutOfCreditsError
from tickpipe.backfill.rest_client import RestClient

logger = logging.getLogger("tickpipe.backfill")


#: Trades in one answer, at most, with each exchange.
MAX_ANSWER = 1000


class Missing(NamedTuple):
    """Trades of one symbol that are missing, or some of them are."""

    symbol: str
    range: TradeRange


class RefusedRequestError(TickpipeError):
    """The exchange refuses a request."""


def read(store: DatabaseClient, vendor: Vendor, since: datetime) -> list[Missing]:
    """The trades of this exchange that are missing since then. Raises OutageError, ConfigurationError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT symbol, first_id, last_id, extract(epoch FROM since - interval '1 minute') "
            "FROM skipped_trades(first_session_of(%s)) "
            "WHERE exchange = %s AND until >= %s ORDER BY symbol, first_id",
            (since, vendor.exchange, since),
        )
        return joined(Missing(symbol, TradeRange(*numbers)) for symbol, *numbers in cursor.fetchall())


def joined(missing: Iterable[Missing]) -> list[Missing]:
    """The ranges, those of a symbol joined that one answer may have. They must be in order.

    The trades between them are stored already, and are not stored again.
    """
    found: list[Missing] = []
    for each in missing:
        before = found[-1] if found and found[-1].symbol == each.symbol else None
        if before and each.range.last - before.range.first < MAX_ANSWER:
            found[-1] = Missing(each.symbol, before.range._replace(last=max(before.range.last, each.range.last)))
        else:
            found.append(each)
    return found


class TradesRest:
    """Requests trades of one exchange, without a key."""

    def __init__(self, vendor: Vendor, url: str | None, environ: Mapping[str, str], limiter: RateLimiter) -> None:
        """`url`: another base URL than the exchange's. `environ` has the proxy variables.

        Raises ConfigurationError if the exchange answers no requests for trades by number, or for an invalid URL.
        """
        if not vendor.rest_url:
            raise ConfigurationError(f"{vendor.title} answers no requests for trades: use coinbase, kraken or binance")
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
        path = vendor.trades_path(vendor.spell(missing.symbol), missing.range)
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
        answer = decode(reply.body)
        if reason := vendor.refusal(answer):
            if "rate limit" in reason.lower() or "too many" in reason.lower():
                raise OutOfCreditsError(f"{vendor.title} says {reason}")
            raise RefusedRequestError(f"{vendor.title} says {reason} to a request for {missing.symbol}")
        return list(vendor.trades(answer, missing.symbol))


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
    left = missing.range
    while left.size > 0:
        ticks = [vendor.parse(event, 0, 0, 0) for event in request(missing._replace(range=left))]
        good = [tick for tick in ticks if tick.trade_id.isdecimal() and validation_error(tick) is None]
        found = {int(tick.trade_id): tick for tick in good if left.first <= int(tick.trade_id) <= left.last}
        if found:
            yield list(found.values())
        following = _rest_of(vendor, left, good, found)
        if following is None:
            logger.warning(
                "backfill: %s has no trades %d to %d of %s", vendor.title, left.first, left.last, missing.symbol
            )
            return
        left = following


def _rest_of(vendor: Vendor, left: TradeRange, ticks: Sequence[Tick], found: Collection[int]) -> TradeRange | None:
    """The trades that are still missing after an answer; None if the exchange does not have it.

    An answer that begins at a time may end before the first trade that is missing.
    """
    if vendor.by_time and ticks:
        newest = max(ticks, key=lambda tick: int(tick.trade_id))
        following = left._replace(first=max(left.first, int(newest.trade_id) + 1), since=Decimal(newest.time))
        return None if following == left else following
    if not found:
        return None
    return left._replace(last=min(found) - 1) if vendor.newest_first else left._replace(first=max(found) + 1)


def keep(store: DatabaseClient, ticks: Sequence[Tick]) -> int:
    """Store these trades, each once, however often it comes. Returns the number of new rows. Raises OutageError.

    Consumers wait until it is done: they remove the copy of a trade only if they see the span that has it.
    """
    rows = [(t.symbol, t.time, t.price, t.exchange, t.trade_id, t.size or None, t.side or None) for t in ticks]
    times = [float(tick.time) for tick in ticks]
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE prices_real_time IN SHARE ROW EXCLUSIVE MODE")
        cursor.execute(_SPAN, (ticks[0].symbol, ticks[0].exchange, min(times), max(times)))
        execute_values(cursor, _TRADES, rows, page_size=len(rows))  # one page, so that rowcount counts all rows
        return cursor.rowcount


def drop_copies(store: DatabaseClient, since: datetime) -> None:
    """Remove trades that were requested since then, and that a producer has received as well. Raises OutageError.

    Consumers do this, too, if their role may delete.
    """
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(_COPIES, (since,))


_SPAN = """
INSERT INTO repaired_spans (symbol, exchange, since, until) VALUES (%s, %s, to_timestamp(%s), to_timestamp(%s))
"""
_COPIES = """
DELETE FROM prices_real_time AS copy USING repaired_spans AS s
WHERE s.at >= %s AND copy.session = 0 AND copy.source = 'backfill' AND copy.symbol = s.symbol
  AND copy.exchange = s.exchange AND copy.time >= s.since AND copy.time <= s.until
  AND EXISTS (SELECT FROM prices_real_time AS p
              WHERE p.symbol = copy.symbol AND p.time >= copy.time - interval '1 millisecond'
                AND p.time <= copy.time + interval '1 millisecond'
                AND p.session > 0 AND p.exchange = copy.exchange AND p.trade_id = copy.trade_id)
"""
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
    WHERE p.symbol = t.symbol AND p.time >= to_timestamp(t.time) - interval '1 millisecond'
      AND p.time <= to_timestamp(t.time) + interval '1 millisecond'
      AND p.exchange = t.exchange AND p.trade_id = t.trade_id
)
ON CONFLICT DO NOTHING
"""
