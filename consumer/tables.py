"""How the entries of each stream become rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so
from psycopg2.extras import execute_values

from common import feed_event, tick
from common.codec import Codec
from common.number import DECIMAL_BYTES, INTEGER_BYTES, has_only
from consumer.copies import drop_copies

#: Runs after an insert of these rows. Returns how many of them are not new, although they were inserted.
AfterInsert = Callable[[Cursor, Sequence[Sequence[bytes]]], int]


class Merge(NamedTuple):
    """Rows of a kind that one statement merges. `column` is searched for `value`; the statement gets the keys.

    It returns how many rows were merged before, and were inserted again.
    """

    statement: str
    column: int
    value: bytes
    key: int

    def run(self, cursor: Cursor, columns: Sequence[Sequence[bytes]]) -> int:
        """Merge, if these columns have rows of that kind. Returns how many of them are not new."""
        kinds = columns[self.column]
        if kinds and self.value not in kinds:
            return 0
        keys = {key for key, kind in zip(columns[self.key], kinds, strict=True) if kind == self.value}
        cursor.execute(self.statement, {"keys": array_literal(sorted(keys))})
        return sum(repeated for (repeated,) in cursor.fetchall())


class TableWriter(NamedTuple):
    """Decodes, validates and inserts the entries of one stream."""

    codec: Codec[Any]
    validation_error: Callable[..., str | None]
    statement: str
    template: str
    allowed: Mapping[int, bytes]  # column number → the bytes that its values may have
    choices: Mapping[int, frozenset[bytes]] = MappingProxyType({})  # column number → its values
    after: AfterInsert | None = None

    def check_bytes(self, columns: Sequence[Sequence[bytes]]) -> None:
        """Raise ValueError for values that PostgreSQL would accept: `validation_error` finds them.

        They are spellings of numbers that only PostgreSQL knows, and other texts than the possible ones.
        """
        for position, allowed in self.allowed.items():
            if not has_only(allowed, columns[position]):
                raise ValueError(f"column {position} has bytes other than {allowed!r}")
        for position, choices in self.choices.items():
            if not choices.issuperset(columns[position]):
                raise ValueError(f"column {position} has values other than {sorted(choices)}")

    def insert(self, cursor: Cursor, columns: Sequence[Sequence[bytes]]) -> int:
        """Insert rows, given as columns of equal length, by one statement. Existing rows stay.

        Then runs `after`. Returns the number of new rows. Raises psycopg2's errors, and ValueError for a value that is
        not UTF-8.
        """
        if not columns:
            return 0
        execute_values(cursor, self.statement, [[array_literal(column) for column in columns]], template=self.template)
        inserted = cursor.rowcount
        return inserted - self.after(cursor, columns) if self.after else inserted

    def check_rights(self, cursor: Cursor) -> None:
        """Run the statement without rows. Raises psycopg2's InsufficientPrivilege."""
        self.insert(cursor, [[]] * self.template.count("%s"))


def array_literal(values: Sequence[bytes]) -> str:
    """PostgreSQL's literal for an array of these texts; an empty text is NULL. Raises ValueError for invalid UTF-8.

    Only `\\` and `"` have a meaning inside the quotes. If no value has one, no loop over the values is needed. Source:
    PostgreSQL's manual, "Array Input and Output Syntax".
    """
    joined = b"".join(values)
    if not values or b'"' in joined or b"\\" in joined:
        escaped = [value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') for value in values]
        return (b"{" + b",".join([b'"%b"' % value if value else b"NULL" for value in escaped]) + b"}").decode()
    return (b'{"' + b'","'.join(values) + b'"}').replace(b'""', b"NULL").decode()


def _allowed(record: type[Any], integers: Sequence[str], numbers: Sequence[str] = ()) -> Mapping[int, bytes]:
    position = record._fields.index
    return {position(name): INTEGER_BYTES for name in integers} | {position(name): DECIMAL_BYTES for name in numbers}


# A batch is one row of column arrays. The text from Redis goes to the database as it is, and PostgreSQL converts it.
# Interval times bigint is exact to the microsecond; to_timestamp of a float is not. unnest() is in the select list:
# in FROM, PostgreSQL would materialize all rows first. The array of a column that no entry has is empty: all are NULL.
PRICES = TableWriter(
    tick.CODEC,
    tick.validation_error,
    """
    INSERT INTO prices_real_time
        (session, seq, symbol, time, price, day_volume, bid, ask, exchange, received_at, size, side, trade_id)
    SELECT session, seq, symbol, to_timestamp(time), price, day_volume, bid, ask, exchange,
           timestamptz 'epoch' + received * interval '1 microsecond', size, side, trade_id
    FROM (SELECT unnest(v.session) AS session, unnest(v.seq) AS seq, unnest(v.symbol) AS symbol, unnest(v.time) AS time,
                 unnest(v.price) AS price, unnest(v.day_volume) AS day_volume, unnest(v.bid) AS bid,
                 unnest(v.ask) AS ask, unnest(v.exchange) AS exchange, unnest(v.received) AS received,
                 unnest(v.size) AS size, unnest(v.side) AS side, unnest(v.trade_id) AS trade_id
          FROM (VALUES %s) AS v (session, seq, symbol, time, price, day_volume, bid, ask, exchange, received,
                                 size, side, trade_id)) AS t
    ON CONFLICT DO NOTHING
    """,
    "(%s::bigint[], %s::bigint[], %s::text[], %s::float8[], %s::float8[], %s::float8[], %s::float8[], %s::float8[], "
    "%s::text[], %s::bigint[], %s::float8[], %s::text[], %s::bigint[])",
    _allowed(tick.Tick, tick.INTEGERS, tick.NUMBERS),
    {tick.Tick._fields.index("side"): frozenset(side.encode() for side in tick.SIDES)},
    after=drop_copies,
)
FEED = TableWriter(
    feed_event.CODEC,
    feed_event.validation_error,
    """
    INSERT INTO feed_events (session, number, at, event, detail)
    SELECT session, number, timestamptz 'epoch' + at * interval '1 microsecond', event, detail
    FROM (SELECT unnest(v.session) AS session, unnest(v.number) AS number, unnest(v.at) AS at, unnest(v.event) AS event,
                 unnest(v.detail) AS detail
          FROM (VALUES %s) AS v (session, number, at, event, detail)) AS t
    ORDER BY session, number -- transactions that insert the same events wait for each other, but never in a circle
    ON CONFLICT DO NOTHING
    """,
    "(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::jsonb[])",
    _allowed(feed_event.FeedEvent, feed_event.INTEGERS),
    # If this role may: otherwise there are more rows, nothing else. The lock has a statement of its own, so that the
    # next one sees what the holder before has committed.
    after=Merge(
        "SELECT pg_advisory_xact_lock(key) FROM (SELECT unnest(%(keys)s::bigint[]) AS key ORDER BY 1) AS sessions; "
        "SELECT merge_signs_of_life(%(keys)s::bigint[]) WHERE has_table_privilege('feed_events', 'SELECT') "
        "AND has_table_privilege('feed_events', 'UPDATE') AND has_table_privilege('feed_events', 'DELETE')",
        feed_event.FeedEvent._fields.index("event"),
        b"alive",
        feed_event.FeedEvent._fields.index("session"),
    ).run,
)
