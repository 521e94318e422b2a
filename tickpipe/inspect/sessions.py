"""The newest sessions, and how many prices of each are stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tickpipe.inspect.cached_query import CachedQuery
from tickpipe.inspect.database import DatabaseReader
from tickpipe.inspect.snapshot import DatabaseInfo, Session, StoredCount
from tickpipe.inspect.symbols import SYMBOL_NAMES

#: Sessions that are listed. The sessions of several channels that began together are one.
MAX_SESSIONS = 6
#: The newest sessions that are looked at for that.
MAX_CHANNEL_SESSIONS = 100
#: The longest session whose rows are counted, in prices. `tickpipe verify` counts longer ones.
MAX_COUNTED = 100_000


class SessionReader:
    """Reads the newest sessions at most every 2 s, and counts the rows of each at most every 10 s."""

    def __init__(self, database: DatabaseReader, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._monotonic = monotonic
        self._sessions = CachedQuery(self._read, 2.0, monotonic)
        self._counts: dict[tuple[int, ...], CachedQuery[StoredCount]] = {}
        self._waiting = 0

    def read(self, waiting: int) -> Sequence[Session]:
        """The newest sessions. `waiting`: entries in the stream that are not stored yet. Raises OutageError."""
        self._waiting = waiting
        return self._sessions()

    def _read(self) -> list[Session]:
        rows = self._database.rows(NEWEST_SESSIONS, count=MAX_CHANNEL_SESSIONS, most=MAX_SESSIONS)
        found = [(tuple(ids), Session(*row)) for ids, *row in rows]
        self._counts = {
            ids: self._counts.get(ids) or self._counter(ids)
            for ids, session in found
            if not session.verified and session.last_seq <= MAX_COUNTED
        }
        return [
            session._replace(counted=self._counts[ids]()) if ids in self._counts else session for ids, session in found
        ]

    def _counter(self, ids: tuple[int, ...]) -> CachedQuery[StoredCount]:
        return CachedQuery(lambda: self._count(ids), 10.0, self._monotonic)

    def _count(self, ids: tuple[int, ...]) -> StoredCount:
        waiting = self._waiting  # before the count: entries stored during the count are not missing
        counts = [self._database.rows(_COUNT, session=session)[0] for session in ids]
        return StoredCount(sum(reported for reported, _ in counts), sum(stored for _, stored in counts), waiting)


def read_database_info(database: DatabaseReader) -> DatabaseInfo:
    """Version, size and dead letters of the database. Raises OutageError."""
    return DatabaseInfo(*database.rows(_DATABASE)[0])


NEWEST_SESSIONS = """
WITH newest AS (
    SELECT session, feed, last_seen_at, stopped, last_seq, verified
    FROM feed_states ORDER BY session DESC LIMIT %(count)s
)
SELECT array_agg(session ORDER BY session), min(session), coalesce(min(feed), '?'),
       extract(epoch FROM max(last_seen_at))::float8, bool_and(stopped),
       coalesce(max(connection.event), ''), coalesce(max(connection.cause), ''),
       sum(last_seq)::bigint, bool_and(verified)
FROM newest
LEFT JOIN LATERAL (
    SELECT (detail ->> 'first')::bigint AS first FROM feed_events e
    WHERE e.session = newest.session AND event = 'started' ORDER BY number LIMIT 1
) AS started ON true
LEFT JOIN LATERAL (
    SELECT event, detail ->> 'cause' AS cause FROM feed_events e
    WHERE e.session = newest.session AND event IN ('connected', 'disconnected')
      AND event <> 'alive' -- the condition of the partial index
    ORDER BY number DESC LIMIT 1
) AS connection ON true
GROUP BY coalesce(started.first, session)
ORDER BY 2 DESC
LIMIT %(most)s
"""

# Counted by symbol through the primary key, within the exchange times that the session has reported.
_COUNT = (
    SYMBOL_NAMES.rstrip()
    + """, reported AS (
    SELECT session, last_seq, to_timestamp(coalesce(time_min, session / 1e6)) AS since,
           to_timestamp(coalesce(time_max, session / 1e6)) AS until
    FROM feed_sessions WHERE session = %(session)s
)
SELECT coalesce((SELECT last_seq FROM reported), 0), coalesce((
    SELECT sum(rows.count) FROM reported, names, LATERAL (
        SELECT count(*) FROM prices_real_time p
        WHERE p.symbol = names.symbol AND p.time >= reported.since AND p.time <= reported.until
          AND p.session = reported.session AND p.seq <= reported.last_seq
    ) AS rows
), 0)::bigint + (
    SELECT count(DISTINCT d.seq) FROM dead_letters d, reported
    WHERE d.session = reported.session AND d.seq <= reported.last_seq AND d.stream NOT LIKE '%%:feed'
)
"""
)

_DATABASE = """
SELECT coalesce((SELECT 'TimescaleDB ' || extversion FROM pg_extension WHERE extname = 'timescaledb'),
                'PostgreSQL ' || split_part(current_setting('server_version'), ' ', 1)),
       pg_database_size(current_database()),
       (SELECT count(*) FROM (SELECT 1 FROM dead_letters LIMIT 1000) AS letters)
"""
