"""Proves completeness, session by session: every number the producer vouched for is accounted for, each once.

The expected last number comes from the feed's events, never from the table alone, so that a lost tail shows. What the
table lacks is looked for in the direction the data flow, spool, stream, database: what moves on meanwhile is met
further down. What is missing then is looked for once more after a claim interval, before anything is reported.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so

from common.database.client import DatabaseClient
from common.errors import OutageError
from common.feed_event import REPORT_TIMEOUT
from common.streams.group import ConsumerGroup
from common.tick import TIME_RANGE
from producer.spool import read_spool, spool_files
from tickpipe.inspect.verdict import COMPLETE, NO_WORD, Verdict
from tickpipe.ranges import Range, merged, without
from tickpipe.terminal.progress import ProgressCallback

logger = logging.getLogger("tickpipe.verify")

#: A dead session's prices after its last word may lie so far outside the span it vouched for, in seconds: the first
#: quote of a weekend is Friday's.
TAIL_SPAN = 7 * 86_400.0
#: Seconds of silence after which a session that never said goodbye is sealed too.
SEALED_AFTER = 86_400.0
#: Most missing ranges of a session that are named with their times.
SHOWN = 20


class _Session(NamedTuple):
    """A row of feed_sessions; times in seconds."""

    id: int
    feed: str
    stopped: bool
    silent: float  # since its last word
    last_seq: int
    time_min: float
    time_max: float

    last_number: int

    @property
    def bounds(self) -> dict[str, object]:
        """What bounds every scan: the session and the exchange's times of its prices."""
        tail = 0.0 if self.stopped else TAIL_SPAN
        return {"session": self.id, "since": self.time_min - tail, "until": self.time_max + tail}


def verify(
    store: DatabaseClient,
    prices: ConsumerGroup,
    feed: ConsumerGroup,
    spool_folder: Path,
    *,
    everything: bool = False,
    since: int = 0,
    recheck_after: float = 30.0,
    silent_after: float = REPORT_TIMEOUT,
    progress: ProgressCallback = lambda *_: None,
    sleep: Callable[[float], object] = time.sleep,
) -> list[Verdict]:
    """The verdict on each session that is not sealed (`everything`: on each), oldest first; seals what it can.

    `since`: only sessions that began then or later, microseconds since 1970. `recheck_after`: seconds, the consumers'
    claim interval. `silent_after`: seconds without a word after which a session counts as dead. Raises OutageError.
    """
    with _snapshot(store) as cursor:
        sessions = _sessions(cursor, since, everything=everything)
        verdicts = {}
        done, total = 0, sum(session.last_seq for session in sessions)
        for number, session in enumerate(sessions, 1):
            progress(done, total, f"verifying session {number} of {len(sessions)}, prices")
            verdicts[session] = _scan(cursor, session, silent_after)
            done += session.last_seq
    for wait in (0.0, recheck_after):
        suspects = [session for session, verdict in verdicts.items() if verdict.missing or verdict.untold]
        if not suspects:
            break
        if wait:
            progress(0, 0, f"{len(suspects)} sessions with numbers not found: looking again in {wait:.0f} s")
            sleep(wait)
        prices_waiting, feed_waiting = _on_their_way(spool_folder, prices, feed)
        with _snapshot(store) as cursor:
            for session in suspects:
                verdict = verdicts[session] = _scan(cursor, session, silent_after)
                verdict.missing, verdict.waiting = without(verdict.missing, prices_waiting[session.id])
                verdict.untold, feed_left = without(verdict.untold, feed_waiting[session.id])
                verdict.waiting += feed_left
    with store.transaction() as connection, connection.cursor() as cursor:
        for session, verdict in verdicts.items():
            verdict.spans = [_span(cursor, session, missing) for missing in verdict.missing[:SHOWN]]
            if verdict.state == COMPLETE or (verdict.state == NO_WORD and verdict.silent > SEALED_AFTER):
                _seal(cursor, verdict)
    return list(verdicts.values())


@contextmanager
def _snapshot(store: DatabaseClient) -> Iterator[Cursor]:
    with store.transaction("REPEATABLE READ") as connection, connection.cursor() as cursor:
        cursor.execute("SET LOCAL work_mem = '256MB'")
        yield cursor


def _sessions(cursor: Cursor, since: int, *, everything: bool) -> list[_Session]:
    cursor.execute(_SESSIONS, {"since": since, "everything": everything})
    return [_Session(*row) for row in cursor.fetchall()]


def _scan(cursor: Cursor, session: _Session, silent_after: float) -> Verdict:
    """The verdict on a session. Of one that never said goodbye, holes are looked for at any time of the exchange.

    It never reported the span of its last prices, and the exchange's time may be wrong by years.
    """
    verdict = _scan_span(cursor, session, silent_after, session.bounds)
    if verdict.missing and not session.stopped:
        always = {"session": session.id, "since": TIME_RANGE[0], "until": TIME_RANGE[1]}
        return _scan_span(cursor, session, silent_after, always)
    return verdict


def _scan_span(cursor: Cursor, session: _Session, silent_after: float, bounds: Mapping[str, object]) -> Verdict:
    """One ordered pass over the session's numbers: a step that is not 1 is a hole, or a number found twice."""
    cursor.execute(_ROWS, bounds)
    rows, highest = cursor.fetchone() or (0, 0)
    # What a dead producer appended after its last word counts too: a hole below it is a loss.
    alive = not session.stopped and session.silent < silent_after
    expected = session.last_seq if alive or session.stopped else max(session.last_seq, highest)
    cursor.execute(_STEPS, {**bounds, "last": expected})
    steps = cursor.fetchall()
    verdict = Verdict(session.id, session.feed, alive, session.stopped, session.silent, expected, rows)
    verdict.missing = [Range(seq + 1, following - 1) for seq, following in steps if following > seq + 1]
    verdict.doubled = merged([Range(seq, seq) for seq, following in steps if following == seq])
    cursor.execute(_UNTOLD, {"session": session.id, "last": session.last_number})
    verdict.untold = [Range(number + 1, following - 1) for number, following in cursor.fetchall()]
    if verdict.missing:
        cursor.execute(_DEAD, bounds)
        verdict.missing, verdict.dead_letters = without(
            verdict.missing, [Range(seq, seq) for (seq,) in cursor.fetchall()]
        )
        cursor.execute(_LOST, bounds)
        verdict.missing, verdict.lost = without(verdict.missing, [Range(*row) for row in cursor.fetchall()])
        cursor.execute(_EXPIRED, bounds)
        verdict.missing, verdict.expired = without(verdict.missing, [Range(*row) for row in cursor.fetchall()])
    return verdict


Waiting = defaultdict[int, list[Range]]


def _on_their_way(spool_folder: Path, prices: ConsumerGroup, feed: ConsumerGroup) -> tuple[Waiting, Waiting]:
    """Session → numbers that wait in the spool or in the streams, read in that order: of prices, and of feed events."""
    waiting: dict[str, Waiting] = {"prices": defaultdict(list), "feed": defaultdict(list)}
    told = (("feed", *identity) for identity in _streamed(feed, b"number"))
    priced = (("prices", *identity) for identity in _streamed(prices, b"seq"))
    for stream, session, number in chain(_spooled(spool_folder), priced, told):
        ranges = waiting[stream][session]
        if ranges and ranges[-1].last == number - 1:
            ranges[-1] = Range(ranges[-1].first, number)
        else:
            ranges.append(Range(number, number))
    return waiting["prices"], waiting["feed"]


def _spooled(folder: Path) -> Iterator[tuple[str, int, int]]:
    """(stream, session, number) of everything in the spools of this machine."""
    for path in spool_files(folder):
        try:
            for stream, entry in read_spool(path):
                yield stream, int(entry["session"]), int(entry["seq" if stream == "prices" else "number"])
        except (OutageError, ValueError, KeyError) as error:
            if path.is_symlink() or path.exists():  # else it was replayed to its end and removed meanwhile
                logger.error("the spool %s cannot be read (%s): what is in it may look missing", path, error)


def _streamed(stream: ConsumerGroup, name: bytes) -> Iterator[tuple[int, int]]:
    """(session, number) of every entry in the stream that is not stored yet; `name` is the number's field."""
    for entry in stream.unprocessed():
        fields = entry.fields or {}
        session, number = fields.get(b"session", b""), fields.get(name, b"")
        if session.isdigit() and number.isdigit():
            yield int(session), int(number)


def _span(cursor: Cursor, session: _Session, missing: Range) -> tuple[datetime | None, datetime | None]:
    cursor.execute(_SPAN, {**session.bounds, "first": missing.first, "last": missing.last})
    row: tuple[Any, Any] = cursor.fetchone() or (None, None)
    return row


def _seal(cursor: Cursor, verdict: Verdict) -> None:
    cursor.execute(
        "INSERT INTO verified_sessions (session, last_seq, rows, dead_letters, lost) VALUES (%s, %s, %s, %s, %s) "
        "ON CONFLICT (session) DO UPDATE SET last_seq = EXCLUDED.last_seq, rows = EXCLUDED.rows, "
        "dead_letters = EXCLUDED.dead_letters, lost = EXCLUDED.lost, at = now()",
        (verdict.session, verdict.expected, verdict.stored, verdict.dead_letters, verdict.lost),
    )


_SESSIONS = """
SELECT s.session, coalesce(s.feed, '?'), s.stopped_at IS NOT NULL,
       extract(epoch FROM clock_timestamp() - s.last_seen_at)::float8, s.last_seq,
       coalesce(s.time_min, s.session / 1e6), coalesce(s.time_max, s.session / 1e6), s.last_number
FROM feed_sessions s LEFT JOIN verified_sessions v USING (session)
WHERE s.session >= %(since)s AND (%(everything)s OR v.session IS NULL OR v.last_seq < s.last_seq)
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
SELECT DISTINCT seq FROM dead_letters
WHERE session = %(session)s AND seq IS NOT NULL AND stream NOT LIKE '%%:feed'
"""

_LOST = """
SELECT (detail ->> 'first_seq')::bigint, (detail ->> 'last_seq')::bigint FROM feed_events
WHERE session = %(session)s AND event = 'overflow'
"""

_EXPIRED = "SELECT first_seq, last_seq FROM feed_expired WHERE session = %(session)s"

_UNTOLD = """
SELECT number, following FROM (
    SELECT number, lead(number, 1, %(last)s + 1) OVER (ORDER BY number) AS following
    FROM (
        SELECT 0::bigint AS number
        UNION SELECT number FROM feed_events WHERE session = %(session)s
        UNION SELECT seq FROM dead_letters WHERE session = %(session)s AND seq <= %(last)s AND stream LIKE '%%:feed'
    ) AS numbers
) AS steps WHERE following > number + 1 ORDER BY number
"""

_SPAN = (
    "SELECT max(received_at) FILTER (WHERE seq = %(first)s - 1), min(received_at) FILTER (WHERE seq = %(last)s + 1)"
    + _OF_SESSION
    + " AND seq IN (%(first)s - 1, %(last)s + 1)"
)
