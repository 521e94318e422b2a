"""Stores ticks that did not come from a producer, as sessions of their own.

Such a tick is identified by its values: a row with the values of an imported tick is not stored again. So an import can
be repeated, and continues after any interruption. Each run is a session. It has feed events as a producer's session,
so that `verify` can check it: each batch is one transaction with its rows and a report of the last number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so

from common import feed_event
from common.database.client import DatabaseClient
from common.errors import ConfigurationError
from common.formatting import counted
from consumer.tables import FEED, array_literal
from tickpipe.files.columns import InvalidRowError, NewTick, Row, to_tick

#: The name of the feed of these sessions, and the `source` of their rows.
FEED_NAME = "import"
#: Key of the advisory lock of a batch: two imports at once must not store the same row. "tick" in ASCII, plus 1.
_LOCK = 0x7469636C
#: A new session begins when the time goes back, as in a file that has one symbol after the other. Sessions at most:
MAX_SESSIONS = 1000

DOUBLE, STORED_BEFORE = "exact double of another row", "stored by an earlier import"


@dataclass
class ImportResult:
    """Counts of rows. `read` is `stored` plus all of `refused`, which has the reasons."""

    read: int = 0
    stored: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    sessions: list[int] = field(default_factory=list)

    def lines(self, source: str) -> list[str]:
        """The result as text."""
        lines = [f"{source}: {self.read:,} rows read, {self.stored:,} stored, {self.refused.total():,} not stored"]
        lines += [f"  {count:,} not stored: {reason}" for reason, count in sorted(self.refused.items())]
        if self.sessions:
            first = f"session {self.sessions[0]}"
            lines.append(first if len(self.sessions) == 1 else f"{counted(len(self.sessions), 'session')}, {first} …")
        return lines


@dataclass
class _Session:
    """The state of the current session, as committed. `received`: the last time of receipt, in microseconds."""

    id: int
    seq: int = 0
    received: int = 0
    time_min: int = 0
    time_max: int = 0

    def report(self) -> dict[str, object]:
        """The detail of `alive` and `stopped`. Times in whole seconds, around all ticks."""
        span = {"time_min": self.time_min // 1_000_000, "time_max": -(-self.time_max // 1_000_000)}
        return {"last_seq": self.seq, **span}


class Importer:
    """Stores batches of rows. The rows of a session are in order of time."""

    def __init__(self, store: DatabaseClient, source: str, clock: Callable[[], int]) -> None:
        """`source`: the name of the table or file. `clock` gives microseconds UTC."""
        self.result = ImportResult()
        self._store = store
        self._source = source
        self._clock = clock
        self._session: _Session | None = None
        self._latest = -1  # the time of the last tick
        self._seen: set[NewTick] = set()  # the ticks of that time
        self._horizon = -1

    def begin(self) -> None:
        """End sessions that an interrupted import has left. Raises OutageError, ConfigurationError."""
        with self._store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            cursor.execute(_UNFINISHED, (FEED_NAME,))
            for session, *report in cursor.fetchall():
                detail = dict(zip(("last_seq", "time_min", "time_max"), report, strict=True))
                self._emit(cursor, session, "stopped", {name: value for name, value in detail.items() if value})
            cursor.execute("SELECT (extract(epoch FROM nullif(candles_horizon(), '-infinity')) * 1000000)::bigint")
            (horizon,) = cursor.fetchone() or (None,)
            self._horizon = -1 if horizon is None else horizon

    def add(self, rows: Iterable[Row]) -> None:
        """Store these rows. Raises OutageError, ConfigurationError."""
        batch: list[NewTick] = []
        for row in rows:
            self.result.read += 1
            try:
                tick = self._new_tick(row)
            except InvalidRowError as error:
                self.result.refused[str(error)] += 1
                continue
            if tick.time != self._latest:
                if tick.time < self._latest:
                    self._store_batch(batch)
                    batch = []
                    self.end()
                self._latest = tick.time
                self._seen.clear()
            self._seen.add(tick)
            batch.append(tick)
        self._store_batch(batch)

    def refuse(self, reason: str) -> None:
        """Count a row that cannot be read."""
        self.result.read += 1
        self.result.refused[reason] += 1

    def end(self) -> None:
        """Report the end of the session, if it has one. Raises OutageError."""
        session, self._session = self._session, None
        if session is not None:
            with self._store.transaction() as connection, connection.cursor() as cursor:
                self._emit(cursor, session.id, "stopped", session.report())

    def _new_tick(self, row: Row) -> NewTick:
        tick = to_tick(row)
        if tick.time < self._horizon:
            raise InvalidRowError("older than the ticks that retention has dropped, so its candle is final")
        if tick.time == self._latest and tick in self._seen:
            raise InvalidRowError(DOUBLE)
        return tick

    def _store_batch(self, batch: Sequence[NewTick]) -> None:
        """Store the ticks of this batch that are new, and report the last number, in one transaction."""
        if not batch:
            return
        with self._store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            old = self._stored_before(cursor, batch)
            ticks = [tick for n, tick in enumerate(batch) if n not in old]
            session = self._session
            if ticks:
                session = session or self._begin_session(cursor, ticks[0].time)
                session = self._insert(cursor, session, ticks)
                self._emit(cursor, session.id, "alive", session.report())
        if session is not None and session.id not in self.result.sessions[-1:]:
            self.result.sessions.append(session.id)
        self._session = session
        self.result.stored += len(ticks)
        if old:
            self.result.refused[STORED_BEFORE] += len(old)

    def _stored_before(self, cursor: Cursor, batch: Sequence[NewTick]) -> set[int]:
        """The positions of ticks that an import has stored."""
        cursor.execute(_STORED_BEFORE, {"source": FEED_NAME, "n": _literal(range(len(batch))), **_arrays(batch)})
        return {n for (n,) in cursor.fetchall()}

    def _begin_session(self, cursor: Cursor, time: int) -> _Session:
        """A new session. Its id is the time now, as that of a producer's session.

        If its first tick is older than all sessions of producers, its id is the second of that tick, with the
        microseconds of the clock to be unique: such ticks are not a growth of the table in the last day. In other cases
        a session at that time could hide a gap: `feed_gaps_between` reads the last day that has sessions.
        """
        if len(self.result.sessions) >= MAX_SESSIONS:
            raise ConfigurationError(
                f"{self._source}: the time goes back more than {MAX_SESSIONS} times: sort the rows by time"
            )
        session = self._clock()
        cursor.execute(_PRODUCERS_BEFORE, {"feed": FEED_NAME, "time": time})
        if cursor.fetchone() is None:
            session = max(1, time // 1_000_000 * 1_000_000 + session % 1_000_000)
        while not self._insert_event(cursor, session, 1, "started", {"feed": FEED_NAME, "source": self._source}):
            session += 1  # there is such a session
        return _Session(session)

    def _insert(self, cursor: Cursor, session: _Session, ticks: Sequence[NewTick]) -> _Session:
        """Insert the ticks, and return the new state. The time of receipt is the exchange's, but always increasing."""
        received, last = [], session.received
        for tick in ticks:
            last = max(tick.time, last + 1)
            received.append(last)
        seqs = list(range(session.seq + 1, session.seq + len(ticks) + 1))
        numbers = {
            "session": session.id, "source": FEED_NAME, "seq": _literal(seqs), "received": _literal(received)
        }  # fmt: skip
        cursor.execute(_INSERT, {**numbers, **_arrays(ticks)})
        first = session.time_min if session.seq else ticks[0].time
        return _Session(session.id, seqs[-1], last, first, ticks[-1].time)

    def _emit(self, cursor: Cursor, session: int, event: str, detail: dict[str, object]) -> None:
        cursor.execute("SELECT max(number) + 1 FROM feed_events WHERE session = %s", (session,))
        (number,) = cursor.fetchone() or (1,)
        self._insert_event(cursor, session, number, event, detail)

    def _insert_event(self, cursor: Cursor, session: int, number: int, event: str, detail: dict[str, object]) -> int:
        made = feed_event.make(session, number, self._clock(), event, detail)
        return FEED.insert(cursor, [[value.encode()] for value in made])


def _arrays(ticks: Sequence[NewTick]) -> dict[str, str]:
    """The fields as literals of arrays: psycopg2 would adapt each value by itself."""
    return dict(zip(NewTick._fields, map(_literal, zip(*ticks, strict=True)), strict=True))


def _literal(values: Sequence[Any]) -> str:
    """An array of numbers or texts. That of a column without values is empty: all are NULL."""
    if not any(value is not None for value in values):
        return "{}"
    if any(isinstance(value, str) for value in values):
        return array_literal([(value or "").encode() for value in values])
    return "{" + ",".join(["NULL" if value is None else repr(value) for value in values]) + "}"


_UNFINISHED = """
SELECT s.session, v.last_seq, v.time_min, v.time_max
FROM feed_states AS s CROSS JOIN LATERAL (SELECT * FROM feed_sessions WHERE session = s.session) AS v
WHERE s.feed = %s AND NOT s.stopped
"""

_PRODUCERS_BEFORE = """
SELECT 1 FROM feed_states WHERE feed IS DISTINCT FROM %(feed)s AND session < %(time)s LIMIT 1
"""

# In one select list, so that the arrays advance together.
_TICKS = """unnest(%(time)s::bigint[]) AS micros, unnest(%(symbol)s::text[]) AS symbol,
       unnest(%(price)s::float8[]) AS price,
       unnest(%(day_volume)s::float8[]) AS day_volume, unnest(%(bid)s::float8[]) AS bid,
       unnest(%(ask)s::float8[]) AS ask, unnest(%(exchange)s::text[]) AS exchange, unnest(%(size)s::float8[]) AS size,
       unnest(%(side)s::text[]) AS side, unnest(%(trade_id)s::bigint[]) AS trade_id"""

# A subquery for each row, and not EXISTS, which PostgreSQL may answer by a scan of the whole table.
_STORED_BEFORE = f"""
SELECT n FROM (
    SELECT n, (
        SELECT 1 FROM prices_real_time AS p
        WHERE p.symbol = t.symbol AND p.time = timestamptz 'epoch' + t.micros * interval '1 microsecond'
          AND p.source = %(source)s AND p.price = t.price AND p.day_volume IS NOT DISTINCT FROM t.day_volume
          AND p.bid IS NOT DISTINCT FROM t.bid AND p.ask IS NOT DISTINCT FROM t.ask
          AND p.exchange IS NOT DISTINCT FROM t.exchange AND p.size IS NOT DISTINCT FROM t.size
          AND p.side IS NOT DISTINCT FROM t.side AND p.trade_id IS NOT DISTINCT FROM t.trade_id
        LIMIT 1
    ) AS found
    FROM (SELECT unnest(%(n)s::int[]) AS n, {_TICKS}) AS t
) AS looked_up WHERE found = 1
"""

_INSERT = f"""
INSERT INTO prices_real_time
    (session, seq, symbol, time, price, day_volume, bid, ask, exchange, received_at, size, side, trade_id, source)
SELECT %(session)s, seq, symbol, timestamptz 'epoch' + micros * interval '1 microsecond', price, day_volume, bid, ask,
       exchange, timestamptz 'epoch' + received * interval '1 microsecond', size, side, trade_id, %(source)s
FROM (SELECT unnest(%(seq)s::bigint[]) AS seq, unnest(%(received)s::bigint[]) AS received, {_TICKS}) AS t
"""
