"""Verifies each session: every number that the producer reported must be accounted for exactly once.

The expected last number comes from the feed's events, never from the table alone. Otherwise a lost tail would not show.
Numbers that the table lacks are searched in the spool, then in the stream, then again in the table. This is the
direction of the data, so an entry that moves on during the search is found at the next place. Numbers that are still
missing are searched once more after the consumers' claim interval.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so

from common.database.client import DatabaseClient
from common.errors import OutageError
from common.feed_event import REPORT_TIMEOUT
from common.formatting import counted
from common.streams.group import ConsumerGroup
from common.tick import TIME_RANGE
from producer.spool import read_spool
from producer.spool_folder import all_spool_files
from tickpipe.inspect.verdict import COMPLETE, NO_FINAL_REPORT, Skipped, Traded, Verdict
from tickpipe.progress import ProgressCallback
from tickpipe.ranges import Range, merged, without

logger = logging.getLogger("tickpipe.verify")

#: Seconds around the reported times of a dead session in which prices after its last report are searched. The first
#: quote of a weekend is Friday's.
TAIL_SPAN = 7 * 86_400.0
#: Seconds after its last report from which a session without a final report is marked as verified too.
VERIFIED_AFTER = 86_400.0
#: Missing ranges of a session whose times are looked up, at most.
MAX_SPANS = 20


class _Session(NamedTuple):
    """A row of feed_sessions. `idle`: seconds since the last report. Other times: seconds since 1970."""

    id: int
    feed: str
    stopped: bool
    idle: float
    last_seq: int
    time_min: float
    time_max: float
    last_number: int

    @property
    def bounds(self) -> dict[str, object]:
        """The parameters that bound every scan: the session and the exchange times of its prices."""
        tail = 0.0 if self.stopped else TAIL_SPAN
        return {"session": self.id, "since": self.time_min - tail, "until": self.time_max + tail}


def verify(
    store: DatabaseClient,
    prices: Sequence[ConsumerGroup],
    feed: Sequence[ConsumerGroup],
    spool_folder: Path,
    *,
    channels: Sequence[int] | None = None,
    everything: bool = False,
    since: int = 0,
    recheck_after: float = 30.0,
    session_timeout: float = REPORT_TIMEOUT,
    progress: ProgressCallback = lambda *_: None,
    sleep: Callable[[float], object] = time.sleep,
) -> list[Verdict]:
    """The verdict on each session that is not verified yet, oldest first. Marks complete sessions as verified.

    `prices`, `feed`: the streams of all channels, or of these `channels`; then only their sessions. `everything`:
    include verified sessions. `since`: only sessions that began then or later, microseconds since 1970.
    `recheck_after`: the consumers' claim interval in seconds. `session_timeout`: seconds without a report after which a
    session counts as dead. Raises OutageError.
    """
    wanted = {"since": since, "everything": everything, "channels": None if channels is None else list(channels)}
    verdicts = _scan_all(store, wanted, session_timeout, progress)
    for wait in (0.0, recheck_after):
        suspects = [session for session, verdict in verdicts.items() if verdict.missing or verdict.missing_events]
        if not suspects:
            break
        if wait:
            found = counted(len(suspects), "session")
            progress(0, 0, f"numbers missing in {found}: searching again in {wait:.0f} s")
            sleep(wait)
        prices_waiting, feed_waiting = _waiting(spool_folder, prices, feed)
        with _snapshot(store) as cursor:
            for session in suspects:
                verdict = verdicts[session] = _scan(cursor, session, session_timeout)
                verdict.missing, verdict.waiting = without(verdict.missing, prices_waiting[session.id])
                verdict.missing_events, events = without(verdict.missing_events, feed_waiting[session.id])
                verdict.waiting += events
    with store.transaction() as connection, connection.cursor() as cursor:
        for session, verdict in verdicts.items():
            verdict.spans = [_span(cursor, session, missing) for missing in verdict.missing[:MAX_SPANS]]
            if verdict.state == COMPLETE or (verdict.state == NO_FINAL_REPORT and verdict.idle > VERIFIED_AFTER):
                _mark_verified(cursor, verdict)
    return list(verdicts.values())


def _scan_all(
    store: DatabaseClient, wanted: Mapping[str, object], session_timeout: float, progress: ProgressCallback
) -> dict[_Session, Verdict]:
    with _snapshot(store) as cursor:
        cursor.execute(_SESSIONS, wanted)
        sessions = [_Session(*row) for row in cursor.fetchall()]
        verdicts = {}
        done, total = 0, sum(session.last_seq for session in sessions)
        for number, session in enumerate(sessions, 1):
            progress(done, total, f"verifying session {number} of {len(sessions)}, prices")
            verdicts[session] = _scan(cursor, session, session_timeout)
            done += session.last_seq
    return verdicts


@contextmanager
def _snapshot(store: DatabaseClient) -> Iterator[Cursor]:
    with store.transaction("REPEATABLE READ") as connection, connection.cursor() as cursor:
        cursor.execute("SET LOCAL work_mem = '256MB'")
        yield cursor


def _scan(cursor: Cursor, session: _Session, session_timeout: float) -> Verdict:
    """The verdict on a session, from the table alone.

    A session without a final report has not reported the times of its last prices, and exchange times can be wrong by
    years. If such a session has holes, all times are searched.
    """
    verdict = _scan_span(cursor, session, session_timeout, session.bounds)
    if verdict.missing and not session.stopped:
        always = {"session": session.id, "since": TIME_RANGE[0], "until": TIME_RANGE[1]}
        verdict = _scan_span(cursor, session, session_timeout, always)
    _count_trades(cursor, session, verdict)
    return verdict


def _count_trades(cursor: Cursor, session: _Session, verdict: Verdict) -> None:
    """Add what the numbers of an exchange say. Costs one index lookup, if the feed has no trades."""
    cursor.execute(_HAS_TRADES, {"session": session.id})
    if cursor.fetchone() is None:
        return
    cursor.execute(_TRADE_GAPS, {"session": session.id})
    gaps = [Skipped(*row) for row in cursor.fetchall()]
    verdict.skipped = [gap for gap in gaps if gap.missing]
    missing: Counter[tuple[str, str]] = Counter()
    repaired: Counter[tuple[str, str]] = Counter()
    for gap in gaps:
        missing[gap.symbol, gap.exchange] += gap.missing
        repaired[gap.symbol, gap.exchange] += gap.last - gap.first + 1 - gap.missing
    cursor.execute(_RECEIVED, session.bounds)
    received = {(symbol, exchange): count for symbol, exchange, count in cursor.fetchall()}
    verdict.trades = [
        Traded(*key, received.get(key, 0), missing[key], repaired[key]) for key in sorted({*received, *missing})
    ]


def _scan_span(cursor: Cursor, session: _Session, session_timeout: float, bounds: Mapping[str, object]) -> Verdict:
    """One ordered pass over the numbers: a step of 0 is a number stored twice, a step above 1 is a hole."""
    cursor.execute(_ROWS, bounds)
    rows, highest = cursor.fetchone() or (0, 0)
    # Prices that a dead producer appended after its last report count too: a hole below them is a loss.
    alive = not session.stopped and session.idle < session_timeout
    expected = session.last_seq if alive or session.stopped else max(session.last_seq, highest)
    cursor.execute(_STEPS, {**bounds, "last": expected})
    steps = cursor.fetchall()
    verdict = Verdict(session.id, session.feed, alive, session.stopped, session.idle, expected, rows)
    verdict.missing = [Range(seq + 1, following - 1) for seq, following in steps if following > seq + 1]
    verdict.doubled = merged([Range(seq, seq) for seq, following in steps if following == seq])
    cursor.execute(_MISSING_EVENTS, {"session": session.id, "last": session.last_number})
    verdict.missing_events = [Range(last + 1, following - 1) for last, following in cursor.fetchall()]
    if verdict.missing:
        verdict.dead_letters = _account_for(cursor, verdict, _DEAD, bounds)
        verdict.lost = _account_for(cursor, verdict, _LOST, bounds)
        verdict.expired = _account_for(cursor, verdict, _EXPIRED, bounds)
    return verdict


def _account_for(cursor: Cursor, verdict: Verdict, query: str, bounds: Mapping[str, object]) -> int:
    """Remove the ranges that the query returns from the missing ones; how many numbers that were."""
    cursor.execute(query, bounds)
    verdict.missing, count = without(verdict.missing, [Range(*row) for row in cursor.fetchall()])
    return count


Waiting = defaultdict[int, list[Range]]


def _waiting(
    spool_folder: Path, prices: Sequence[ConsumerGroup], feed: Sequence[ConsumerGroup]
) -> tuple[Waiting, Waiting]:
    """Numbers in the spool and the streams, read in this order: of prices and of feed events, by session."""
    waiting: dict[str, Waiting] = {"prices": defaultdict(list), "feed": defaultdict(list)}
    events = (("feed", *identity) for identity in _streamed(feed, b"number"))
    priced = (("prices", *identity) for identity in _streamed(prices, b"seq"))
    for stream, session, number in chain(_spooled(spool_folder), priced, events):
        ranges = waiting[stream][session]
        if ranges and ranges[-1].last == number - 1:
            ranges[-1] = Range(ranges[-1].first, number)
        else:
            ranges.append(Range(number, number))
    return waiting["prices"], waiting["feed"]


def _spooled(folder: Path) -> Iterator[tuple[str, int, int]]:
    """(stream, session, number) of every entry in the spools of this machine."""
    for path in all_spool_files(folder):
        try:
            for stream, entry in read_spool(path):
                yield stream, int(entry["session"]), int(entry["seq" if stream == "prices" else "number"])
        except (OutageError, ValueError, KeyError) as error:
            if path.is_symlink() or path.exists():  # a spool is removed after its replay
                logger.error("spool cannot be read: %s (%s). Its prices may be reported as missing", path, error)


def _streamed(streams: Sequence[ConsumerGroup], name: bytes) -> Iterator[tuple[int, int]]:
    """(session, number) of every entry in the streams that is not stored yet. `name`: the field with the number."""
    for entry in chain.from_iterable(stream.unprocessed() for stream in streams):
        fields = entry.fields or {}
        session, number = fields.get(b"session", b""), fields.get(name, b"")
        if session.isdigit() and number.isdigit():
            yield int(session), int(number)


def _span(cursor: Cursor, session: _Session, missing: Range) -> tuple[datetime | None, datetime | None]:
    cursor.execute(_SPAN, {**session.bounds, "first": missing.first, "last": missing.last})
    row: tuple[Any, Any] = cursor.fetchone() or (None, None)
    return row


def _mark_verified(cursor: Cursor, verdict: Verdict) -> None:
    cursor.execute(
        "INSERT INTO verified_sessions (session, last_seq, rows, dead_letters, lost) VALUES (%s, %s, %s, %s, %s) "
        "ON CONFLICT (session) DO UPDATE SET last_seq = EXCLUDED.last_seq, rows = EXCLUDED.rows, "
        "dead_letters = EXCLUDED.dead_letters, lost = EXCLUDED.lost, at = now()",
        (verdict.session, verdict.expected, verdict.stored, verdict.dead_letters, verdict.lost),
    )


_SESSIONS = """
WITH due AS MATERIALIZED (
    SELECT session FROM feed_states WHERE session >= %(since)s AND (%(everything)s OR NOT verified)
)
SELECT s.session, coalesce(s.feed, '?'), s.stopped_at IS NOT NULL,
       extract(epoch FROM clock_timestamp() - s.last_seen_at)::float8, s.last_seq,
       coalesce(s.time_min, s.session / 1e6), coalesce(s.time_max, s.session / 1e6), s.last_number
FROM due CROSS JOIN LATERAL (SELECT * FROM feed_sessions WHERE session = due.session) AS s
WHERE %(channels)s::bigint[] IS NULL OR EXISTS (
    SELECT FROM feed_events AS e
    WHERE e.session = due.session AND event = 'started'
      AND (detail -> 'channel')::bigint = ANY (%(channels)s::bigint[])
)
ORDER BY s.session
"""

_OF_SESSION = """
FROM prices_real_time
WHERE session = %(session)s AND time >= to_timestamp(%(since)s) AND time <= to_timestamp(%(until)s)
"""

_ROWS = (
    "SELECT count(*), greatest(max(seq), (SELECT max(last_seq) FROM feed_expired WHERE session = %(session)s), 0)"
    + _OF_SESSION
)

_STEPS = (
    """
SELECT seq, following FROM (
    SELECT seq, lead(seq, 1, %(last)s + 1) OVER (ORDER BY seq) AS following
    FROM (SELECT 0::bigint AS seq UNION ALL SELECT seq """
    + _OF_SESSION
    + """ AND seq <= %(last)s) AS numbers
) AS steps WHERE following <> seq + 1 ORDER BY seq
"""
)

_DEAD = """
SELECT DISTINCT seq, seq FROM dead_letters
WHERE session = %(session)s AND seq IS NOT NULL AND stream NOT LIKE '%%:feed'
"""

_LOST = """
SELECT (detail ->> 'first_seq')::bigint, (detail ->> 'last_seq')::bigint FROM feed_events
WHERE session = %(session)s AND event = 'overflow'
"""

_HAS_TRADES = """
SELECT FROM feed_events WHERE session = %(session)s AND event IN ('instrument', 'skipped')
AND (event = 'skipped' OR detail ? 'trade_id') LIMIT 1
"""

_TRADE_GAPS = """
SELECT symbol, coalesce(exchange, ''), first_id, last_id, missing FROM trade_gaps(%(session)s, %(session)s)
ORDER BY symbol, first_id
"""

_RECEIVED = "SELECT symbol, coalesce(exchange, ''), count(*)" + _OF_SESSION + "AND trade_id IS NOT NULL GROUP BY 1, 2"

_EXPIRED = "SELECT first_seq, last_seq FROM feed_expired WHERE session = %(session)s"

# A row of signs of life stands for several numbers. Others may be in between: a late one, or a dead letter.
_MISSING_EVENTS = """
SELECT last, following FROM (
    SELECT max(last) OVER places AS last, lead(first, 1, %(last)s + 1) OVER places AS following
    FROM (
        SELECT 0::bigint AS first, 0::bigint AS last
        UNION SELECT coalesce(first_number, number), number FROM feed_events WHERE session = %(session)s
        UNION SELECT seq, seq FROM dead_letters
        WHERE session = %(session)s AND seq <= %(last)s AND stream LIKE '%%:feed'
    ) AS numbers
    WINDOW places AS (ORDER BY first, last)
) AS steps WHERE following > last + 1 ORDER BY last
"""

_SPAN = (
    "SELECT max(received_at) FILTER (WHERE seq = %(first)s - 1), min(received_at) FILTER (WHERE seq = %(last)s + 1)"
    + _OF_SESSION
    + " AND seq IN (%(first)s - 1, %(last)s + 1)"
)
