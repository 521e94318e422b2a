"""Measures what reads the feed's history after three days and after a year: 16 channels with 500 symbols.

The history is made by SQL: a session a day and channel, with 5 reconnects. The same work should take the same time,
however long tickpipe has run. A question about the last day reads the day before, too: hence three days.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

from benchmarks.plan import Case, Part, Preparation, Scale
from benchmarks.report import Ratio, Sample, percentile
from benchmarks.servers import DATABASE, GROUP, STREAM, Bench
from common.database import migrations
from common.database.client import DatabaseClient
from common.feed_event import REPORT_TIMEOUT
from common.settings import Secret
from common.streams.client import connect
from common.streams.group import ConsumerGroup
from tickpipe.inspect.sessions import MAX_CHANNEL_SESSIONS, MAX_SESSIONS, NEWEST_SESSIONS
from tickpipe.inspect.verify import verify

PART = "year"
DAYS = {"3 days": 3, "a year": 365}
CHANNELS = 16
SYMBOLS = 500
#: Measurements in each round.
REPEATS = 5
QUERIES = {
    "sessions of the dashboard": NEWEST_SESSIONS,
    "gaps of a day": "SELECT * FROM feed_gaps_between(now() - interval '1 day')",
    "gaps of a day, one symbol": "SELECT * FROM feed_gaps_between(now() - interval '1 day', one_symbol => 'S1')",
    "backfill of a day": "SELECT * FROM backfill_gaps_from(now() - interval '1 day')",
    "growth of the ticks": "SELECT * FROM ticks_growth",
}
NAMES = ("verify, nothing new", "doctor, feed", *QUERIES)
RATIOS = [Ratio(PART, "p50", f"{name}, after a year", f"{name}, after 3 days") for name in NAMES]
# Each session has 6 connections. Signs of life between two of them are one row.
_FILL = """
INSERT INTO feed_events (session, number, at, event, detail, first_number)
WITH days AS (
    SELECT date_trunc('day', now(), 'UTC') - day * interval '1 day' AS began, channel,
           (SELECT jsonb_agg('S' || n) FROM generate_series(0, %(symbols)s - 1) AS n
            WHERE n %% %(channels)s = channel) AS symbols
    FROM generate_series(1, %(days)s) AS day, generate_series(0, %(channels)s - 1) AS channel
), events AS (
    SELECT began, channel, 1 AS place, 'started' AS event, 1 AS span, 0 AS after,
           jsonb_build_object('feed', 'twelvedata', 'symbols', symbols, 'channel', channel,
                              'first', (extract(epoch FROM began) * 1e6)::bigint) AS detail
    FROM days
    UNION ALL
    SELECT began, channel, 2, 'instrument', 1, 5,
           jsonb_build_object('symbol', name, 'exchange', 'X', 'type', 'Common Stock')
    FROM days, jsonb_array_elements_text(symbols) AS name
    UNION ALL
    SELECT began, channel, 10 * part + kind, event, span, 14400 * (part - 1) + after, detail
    FROM days, generate_series(1, 6) AS part, LATERAL (VALUES
        (3, 'connected', 1, 4, '{}'::jsonb),
        (4, 'subscribed', 1, 5, jsonb_build_object('symbols', symbols)),
        (5, 'alive', 2878, 14390, jsonb_build_object('last_seq', part * 1000)),
        (6, 'disconnected', 1, 14395, '{"cause": "no answer"}'::jsonb)
    ) AS steps (kind, event, span, after, detail)
    UNION ALL
    SELECT began, channel, 99, 'stopped', 1, 86399, '{"last_seq": 6000}'::jsonb FROM days
), numbered AS (
    SELECT *, sum(span) OVER (PARTITION BY began, channel ORDER BY place, detail ->> 'symbol') AS number FROM events
)
SELECT extract(epoch FROM began) * 1e6 + channel, number, began + after * interval '1 second', event, detail,
       CASE event WHEN 'alive' THEN number - span + 1 END
FROM numbered;
INSERT INTO verified_sessions (session, last_seq, rows, dead_letters, lost)
SELECT session, last_seq, last_seq, 0, 0 FROM feed_states;
"""


def part(bench: Bench, scale: Scale) -> Part:
    """Each question after three days and after a year."""
    cases = [
        Case(f"{name}, after {span}", 1, partial(_measure, bench, span, name)) for name in NAMES for span in DAYS
    ]  # fmt: skip
    preparations = [Preparation(f"the feed's events of {span}", 2, partial(_fill, bench, span)) for span in DAYS]
    return Part(PART, scale.year_rounds, preparations, cases)


def _database(span: str) -> str:
    return f"{DATABASE}_{span.replace(' ', '_')}"


def _fill(bench: Bench, span: str) -> None:
    database = _database(span)
    bench.create_database(database)
    with bench.connection(database).cursor() as cursor:
        cursor.execute(_FILL, {"days": DAYS[span], "symbols": SYMBOLS, "channels": CHANNELS})
        cursor.execute("VACUUM ANALYZE")


def _measure(bench: Bench, span: str, name: str, _round: int) -> Sample:
    with closing(DatabaseClient(Secret(bench.database_url(_database(span))))) as store:
        ask = _question(bench, store, span, name)
        seconds = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            ask()
            seconds.append(time.perf_counter() - begun)
    return {"p50": percentile(seconds, 50) * 1000}


def _question(bench: Bench, store: DatabaseClient, span: str, name: str) -> Callable[[], object]:
    if name == "verify, nothing new":
        bench.empty_stream()
        stream = ConsumerGroup(connect(Secret(bench.redis_url), STREAM), STREAM, GROUP)
        return lambda: verify(store, [stream], [stream], bench.folder)

    def ask() -> object:
        with bench.connection(_database(span)).cursor() as cursor:
            if name in QUERIES:
                cursor.execute(QUERIES[name], {"count": MAX_CHANNEL_SESSIONS, "most": MAX_SESSIONS})
            else:
                query = (migrations.SQL_FOLDER / "doctor" / "feed.sql").read_text(encoding="utf-8")
                cursor.execute(query, {"session_timeout": REPORT_TIMEOUT})
            return cursor.fetchall()

    return ask
