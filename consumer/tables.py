"""How the entries of each stream become rows of a table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from common import feed_event, tick
from common.codec import Codec
from common.number import DECIMAL_BYTES, INTEGER_BYTES, has_only

logger = logging.getLogger("consumer.store")


class Table(NamedTuple):
    """How one stream's entries are stored: decoded, judged where the database has refused, inserted."""

    codec: Codec[Any]
    validation_error: Callable[..., str | None]
    insert: str
    template: str
    allowed: Mapping[int, bytes]  # the bytes that the values of a column may have, by the column's position

    def check_bytes(self, columns: Sequence[Sequence[bytes]]) -> None:
        """Raises ValueError if only PostgreSQL would read a number; then `validation_error` finds the entry."""
        for position, allowed in self.allowed.items():
            if not has_only(allowed, columns[position]):
                raise ValueError(f"column {position} has bytes other than {allowed!r}")


def _allowed(record: type[Any], integers: Sequence[str], numbers: Sequence[str] = ()) -> Mapping[int, bytes]:
    position = record._fields.index
    return {position(name): INTEGER_BYTES for name in integers} | {position(name): DECIMAL_BYTES for name in numbers}


# One row of column arrays: the text that came from Redis goes to the database as it is, which converts and judges it.
# Interval times bigint is exact to the microsecond; to_timestamp of a float is not. Each unnest() in the select list is
# a step of the same row; in FROM, all rows would be set aside first.
PRICES = Table(
    tick.CODEC,
    tick.validation_error,
    """
    INSERT INTO prices_real_time
        (session, seq, symbol, time, price, day_volume, bid, ask, exchange, received_at)
    SELECT session, seq, symbol, to_timestamp(time), price, day_volume, bid, ask, exchange,
           timestamptz 'epoch' + received * interval '1 microsecond'
    FROM (SELECT unnest(v.session) AS session, unnest(v.seq) AS seq, unnest(v.symbol) AS symbol, unnest(v.time) AS time,
                 unnest(v.price) AS price, unnest(v.day_volume) AS day_volume, unnest(v.bid) AS bid,
                 unnest(v.ask) AS ask, unnest(v.exchange) AS exchange, unnest(v.received) AS received
          FROM (VALUES %s) AS v (session, seq, symbol, time, price, day_volume, bid, ask, exchange, received)) AS t
    ON CONFLICT DO NOTHING
    """,
    "(%s::bigint[], %s::bigint[], %s::text[], %s::float8[], %s::float8[], %s::float8[], %s::float8[], %s::float8[], "
    "%s::text[], %s::bigint[])",
    _allowed(tick.Tick, tick.INTEGERS, tick.NUMBERS),
)
FEED = Table(
    feed_event.CODEC,
    feed_event.validation_error,
    """
    INSERT INTO feed_events (session, number, at, event, detail)
    SELECT session, number, timestamptz 'epoch' + at * interval '1 microsecond', event, detail
    FROM (SELECT unnest(v.session) AS session, unnest(v.number) AS number, unnest(v.at) AS at, unnest(v.event) AS event,
                 unnest(v.detail) AS detail
          FROM (VALUES %s) AS v (session, number, at, event, detail)) AS t
    ON CONFLICT DO NOTHING
    """,
    "(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::jsonb[])",
    _allowed(feed_event.FeedEvent, feed_event.INTEGERS),
)
