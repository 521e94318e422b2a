"""Removes the requested copies of trades that a consumer stores.

`tickpipe backfill` requests trades that are missing. A trade may be in Redis or in a spool at that time, and is stored
later. Then the row of the producer stays, and the copy is deleted.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so

from common.tick import Tick

_SYMBOL, _TIME, _TRADE_ID = (Tick._fields.index(name) for name in ("symbol", "time", "trade_id"))

# The function is called only if this role may look and delete. If not, the next `tickpipe backfill` removes the copies.
_HAS_REPAIRS = """
SELECT has_repairs(to_timestamp(%(low)s) - interval '1 second', to_timestamp(%(high)s) + interval '1 second')
WHERE has_table_privilege('repaired_spans', 'SELECT') AND has_table_privilege('prices_real_time', 'SELECT')
  AND has_table_privilege('prices_real_time', 'DELETE')
"""
# The first span bounds the chunks that are read. A REST interface may round a time in another way than the websocket.
_DROP = """
DELETE FROM prices_real_time AS copy
USING (SELECT unnest(%(symbols)s::text[]) AS symbol, to_timestamp(unnest(%(times)s::float8[])) AS time,
              unnest(%(ids)s::bigint[]) AS trade_id) AS stored
WHERE copy.time >= to_timestamp(%(low)s) - interval '1 second'
  AND copy.time <= to_timestamp(%(high)s) + interval '1 second'
  AND copy.session = 0 AND copy.source = 'backfill' AND copy.symbol = stored.symbol AND copy.trade_id = stored.trade_id
  AND copy.time >= stored.time - interval '1 millisecond' AND copy.time <= stored.time + interval '1 millisecond'
  AND EXISTS (SELECT FROM prices_real_time AS p
              WHERE p.time >= to_timestamp(%(low)s) - interval '1 second'
                AND p.time <= to_timestamp(%(high)s) + interval '1 second'
                AND p.symbol = copy.symbol AND p.time >= copy.time - interval '1 millisecond'
                AND p.time <= copy.time + interval '1 millisecond'
                AND p.session > 0 AND p.exchange = copy.exchange AND p.trade_id = copy.trade_id)
"""


def drop_copies(cursor: Cursor, columns: Sequence[Sequence[bytes]]) -> int:
    """Delete the copies of the trades in these columns of ticks, which were just inserted. Raises psycopg2's errors.

    Returns 0: all inserted rows stay.
    """
    ids = columns[_TRADE_ID]
    places = [place for place, trade_id in enumerate(ids) if trade_id]
    if not places:
        return 0
    times = [float(columns[_TIME][place]) for place in places]
    bounds = {"low": min(times), "high": max(times)}
    cursor.execute(_HAS_REPAIRS, bounds)
    if cursor.fetchone() == (True,):
        trades = {
            "symbols": [columns[_SYMBOL][place].decode() for place in places], "times": times,
            "ids": [int(ids[place]) for place in places],
        }  # fmt: skip
        cursor.execute(_DROP, {**bounds, **trades})
    return 0
