"""Candles match a computation in plain Python, on PostgreSQL and on a real TimescaleDB."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path

import psycopg2
import pytest

from common import tick
from common.database.migrations import Migration, apply, migrate, read_migrations
from consumer.tables import PRICES
from consumer.writer import Stored, Writer
from tests.support.candles import (
    DAY,
    EPOCH,
    HOUR,
    MINUTE,
    SECOND,
    START,
    VIEWS,
    Traded,
    assert_candles,
    candles,
    expire,
    found,
    insert_ticks,
    make_plain,
    make_ticks,
    refresh,
    store_of,
    with_sizes,
)
from tests.support.capture import read_capture, row, ticks
from tests.support.pipeline import Database
from tests.support.sessions import entry
from tests.support.timescaledb import install_paused, refresh_aggregate

REAL_CAPTURE = Path(__file__).parents[3] / "shared/data/fx-ticks.ndjson"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_candles_match_a_computation_in_python(backend: Database, seed: int) -> None:
    expected = with_sizes(seed, make_ticks(seed))
    assert len({bar.volume for bar in candles(expected, MINUTE)}) > 20
    insert_ticks(backend, expected)
    assert_candles(backend, expected)  # computed from the ticks
    refresh(backend)
    assert_candles(backend, expected)  # computed from the aggregates
    since, until = START + DAY + 3 * HOUR, START + DAY + 9 * HOUR
    inside = [bar for bar in candles(expected, 5 * MINUTE) if since <= bar.bucket < until]
    assert found(backend, f"candles('5 minutes', '{since}', '{until}')") == inside
    assert len(inside) > 5
    since, until = since + timedelta(seconds=30), until + timedelta(seconds=30)
    inside = [bar for bar in candles(expected, MINUTE) if since <= bar.bucket < until]
    assert found(backend, f"candles('1 minute', '{since}', '{until}')") == inside


def test_span_with_an_unknown_end_has_no_candles(backend: Database) -> None:
    insert_ticks(backend, make_ticks(10, count=100))
    for _ in range(2):
        assert found(backend, "candles('1 minute', NULL, 'infinity')") == []
        assert found(backend, "candles('1 minute', '-infinity', NULL)") == []
        assert len(found(backend, "candles('1 minute', '-infinity', 'infinity')")) > 50
        refresh(backend)


@pytest.mark.skipif(not REAL_CAPTURE.exists(), reason="the recorded prices are not beside this repository")
def test_candles_of_recorded_prices_with_volume_are_correct(backend: Database) -> None:
    """Real quotes stored as a consumer does. FX has no volume, so USD/JPY gets an increasing counter."""
    events = [
        event if event["symbol"] != "USD/JPY" else {**event, "day_volume": event["timestamp"] % 86_400 // 7 * 0.25}
        for event in read_capture(REAL_CAPTURE)
    ]
    session = 1_357_000_000_000_000
    entries = [entry(tick.encode(each)) for each in ticks(events, session)]
    with closing(store_of(backend)) as store:
        assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(10_500, 0, 0)
    expected = [
        Traded(symbol, exchange, time, EPOCH + timedelta(microseconds=session + 3 * seq), price, day_volume)
        for seq, (symbol, time, price, day_volume, _, _, exchange) in enumerate(map(row, events), 1)
    ]
    assert sum(bar.volume or 0 for bar in candles(expected, DAY)) > 0
    assert_candles(backend, expected)
    refresh(backend)
    assert_candles(backend, expected)


def test_candles_include_the_newest_and_late_ticks(backend: Database) -> None:
    expected = with_sizes(4, make_ticks(4, count=600))
    late = [one for number, one in enumerate(expected) if number % 5 == 0]
    in_time = [one for number, one in enumerate(expected) if number % 5 != 0]
    half = len(in_time) // 2
    insert_ticks(backend, in_time[:half])
    refresh(backend)
    insert_ticks(backend, in_time[half:], first=10_001)
    later = in_time[half].time.replace(hour=23, minute=59)
    newest = [one for one in in_time if one.time > later]
    assert newest
    assert found(backend, f"candles_1m WHERE bucket > '{later}'") == [
        bar for bar in candles(in_time, MINUTE) if bar.bucket > later
    ]
    insert_ticks(backend, late, first=20_001)  # a replayed spool adds ticks to days that are already aggregated
    refresh(backend)
    assert_candles(backend, expected)


def test_volume_follows_the_counter_rules(backend: Database) -> None:
    def at(minutes: int, count: float | None, exchange: str | None = "NASDAQ") -> Traded:
        time = START + timedelta(hours=22, minutes=minutes)
        return Traded("AAPL", exchange, time, time, 1.0, count)

    insert_ticks(
        backend,
        [
            at(0, 100.0),  # the first bar
            at(1, 130.0),
            at(10, 150.0),  # the previous bar is nine minutes ago
            at(11, 140.0),  # a correction
            at(12, None),
            at(13, 145.0),
            at(14, 50.0),  # below half: the counter restarted
            at(15, 7.0, "ARCA"),  # a separate counter
            at(16, 60.0),
            at(16, 9.0, "ARCA"),
            at(110, 80.0),
            at(125, 70.0),  # a new trading day: any decrease is a restart
        ],
    )
    for _ in range(2):
        assert [bar.volume for bar in found(backend, "candles_1m")] == [
            0.0, 30.0, 20.0, 0.0, None, 5.0, 50.0, 0.0, 10.0 + 2.0, 20.0, 70.0
        ]  # fmt: skip
        assert [bar.volume for bar in found(backend, "candles_1h")] == [117.0, 20.0, 70.0]
        assert [bar.volume for bar in found(backend, "candles_1d")] == [137.0, 70.0]
        refresh(backend)


def test_tick_straying_into_the_previous_minute_counts_no_volume_twice(backend: Database) -> None:
    rng = random.Random(9)
    begun, counts = START + 22 * HOUR, list(accumulate(rng.randrange(1, 50) * 0.25 for _ in range(4000)))
    straying = []
    for number, count in enumerate(counts):  # across midnight without a restart
        received_at = begun + timedelta(seconds=3 * number)
        time = received_at - timedelta(seconds=rng.randrange(40) if number > 20 and rng.random() < 0.2 else 0)
        straying.append(Traded("AAPL", None, time, received_at, 1.0, count))
    insert_ticks(backend, straying)
    for _ in range(2):
        for view in VIEWS:
            assert sum(bar.volume or 0 for bar in found(backend, view)) == counts[-1] - counts[0], view
        assert_candles(backend, straying)
        refresh(backend)


@pytest.mark.parametrize(
    "counts", [[-1.7e308, 1.0, -1.7e308, 1.7e308], [-10.0, -20.0, -5.0, -50.0], [5.0, -1.0, 7.0, 2.0]]
)
def test_negative_day_volume_is_ignored(backend: Database, counts: list[float]) -> None:
    odd = [
        Traded("AAPL", None, START + number * 40 * SECOND, START + number * 40 * SECOND, 1.0, count)
        for number, count in enumerate(counts)
    ]
    insert_ticks(backend, odd)
    for _ in range(2):
        assert all((bar.volume or 0) >= 0 for bar in found(backend, "candles_1m"))
        assert_candles(backend, odd)
        refresh(backend)


def policies(database: Database) -> None:
    """Run the policies now instead of waiting for the scheduler."""
    for (job,) in database.query(
        "SELECT job_id FROM timescaledb_information.jobs "
        "WHERE proc_name = 'policy_refresh_continuous_aggregate' ORDER BY job_id"
    ):
        database.query("CALL run_job(%s)", job)


def test_running_bars_continue_after_a_manual_refresh(hypertable: Database) -> None:
    assert_running_bars_go_on(hypertable, lambda: refresh(hypertable))


def test_running_bars_continue_after_a_regular_table_was_migrated(timescale: Database) -> None:
    make_plain(timescale)
    assert_running_bars_go_on(timescale, lambda: install_paused(timescale, to_timescaledb=True))


def assert_running_bars_go_on(database: Database, aggregate: Callable[[], object]) -> None:
    """Add ticks after an aggregation that includes the running bars, before and after the policies."""
    now = datetime.now(UTC).replace(microsecond=0)

    def at(seconds: float, price: float, count: float) -> Traded:
        time = now - timedelta(seconds=seconds)
        return Traded("AAPL", "NASDAQ", time, time, price, count)

    expected = [at(60 * minutes, 10 + minutes, 1000 - minutes) for minutes in range(4000, 5, -7)]
    insert_ticks(database, expected)
    aggregate()
    more = [at(seconds, 500 + seconds, 2000 - seconds) for seconds in range(300, 0, -5)] + [at(-1800, 4, 4000)]
    insert_ticks(database, more, first=10_001)
    for _ in range(2):
        for view, width in VIEWS.items():
            assert found(database, view) == candles(expected + more, width), view
        policies(database)


def test_policies_aggregate_a_backlog_in_one_transaction(hypertable: Database) -> None:
    """Otherwise candles would be missing between the newest aggregated bars and the oldest."""
    insert_ticks(hypertable, make_ticks(12, days=4))
    policies(hypertable)
    for (table,) in hypertable.query(
        "SELECT format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name) "
        "FROM timescaledb_information.continuous_aggregates"
    ):
        ((bars, written),) = hypertable.query(f"SELECT count(*), count(DISTINCT xmin::text) FROM {table}")
        assert bars > written == 1


def test_tick_from_the_future_does_not_hide_the_newest(hypertable: Database) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    far = Traded("AAPL", None, now.replace(year=2098, day=1), now, 1.0, None)
    insert_ticks(hypertable, [far])
    refresh(hypertable)
    more = [
        Traded("AAPL", None, now - timedelta(seconds=n), now - timedelta(seconds=n), n, None) for n in range(30, 0, -1)
    ]
    insert_ticks(hypertable, more, first=11)
    for _ in range(2):
        assert_candles(hypertable, [far, *more])
        policies(hypertable)


@pytest.mark.parametrize(
    "aggregated",
    [
        [("1m", START + 2 * DAY, None)],  # the newest only
        [("1m", START + 2 * DAY, START + 3 * DAY), ("1m", None, START + DAY)],  # a hole
        [("1m", START + DAY + 7 * MINUTE, START + DAY + 9 * HOUR), ("1h", START + DAY, START + DAY + 8 * HOUR)],
        [("1h", None, None), ("1d", None, None)],  # without minutes
        [("1m", None, None), ("1d", START + DAY, START + 2 * DAY)],
        [("1m", None, None), ("1h", None, None), ("1d", None, None)],
    ],
    ids=["newest", "hole", "middle", "widths alone", "no hours", "all"],
)
def test_candles_are_correct_whatever_is_aggregated(
    hypertable: Database, aggregated: list[tuple[str, datetime | None, datetime | None]]
) -> None:
    """Late ticks of any age count at once, although no job runs."""
    expected = make_ticks(13)
    late = [one for number, one in enumerate(expected) if number % 7 == 0]
    insert_ticks(hypertable, [one for number, one in enumerate(expected) if number % 7 != 0])
    for width, since, until in aggregated:
        refresh_aggregate(hypertable, width, since, until)
    assert_candles(hypertable, [one for number, one in enumerate(expected) if number % 7 != 0])
    insert_ticks(hypertable, late, first=10_001)
    assert_candles(hypertable, expected)
    since, until = START + DAY + 8 * MINUTE, START + 2 * DAY + HOUR
    inside = [bar for bar in candles(expected, MINUTE) if since <= bar.bucket < until]
    assert found(hypertable, f"candles('1 minute', '{since}', '{until}')") == inside


def test_candles_are_correct_if_the_logs_of_timescaledb_are_unknown(hypertable: Database) -> None:
    """A later version may rename the logs. Then nothing counts as aggregated."""
    expected = make_ticks(14, count=300)
    insert_ticks(hypertable, expected)
    refresh_aggregate(hypertable, "1m", START, START + DAY)
    hypertable.query(
        "DO $$ BEGIN EXECUTE (SELECT replace(pg_get_functiondef(oid), 'continuous_aggs_', 'renamed_aggs_') "
        "FROM pg_proc WHERE proname = 'unaggregated'); END $$"
    )
    assert hypertable.query("SELECT unaggregated('1m')::text") == [("{[-infinity,infinity)}",)]
    assert_candles(hypertable, expected)


def test_database_of_an_older_version_is_upgraded(timescale: Database) -> None:
    """It has older candles, and a migration that no longer exists: it refreshed the aggregates."""
    refresh_of_then = Migration("0007_refresh.timescaledb.sql", "SELECT 'a refresh'")
    install_paused(timescale, [*(each for each in read_migrations() if each.name < "0010"), refresh_of_then])
    expected = make_ticks(15, count=400)
    insert_ticks(timescale, expected)
    refresh_aggregate(timescale, "1m", START + DAY, None)
    with closing(store_of(timescale)) as store:
        assert apply(store) == [each.name for each in read_migrations() if each.name >= "0010"]
    assert_candles(timescale, expected)
    expire(timescale, START + 2 * DAY)
    assert_candles(timescale, expected)


@pytest.fixture(params=["plain", "timescale"])
def unmigrated(request: pytest.FixtureRequest) -> Database:
    """A database without the schema, on PostgreSQL and on TimescaleDB."""
    name = "empty_database" if request.param == "plain" else "timescale"
    database: Database = request.getfixturevalue(name)
    return database


def test_candles_stay_equal_when_the_aggregates_are_replaced(unmigrated: Database) -> None:
    """0054 replaces them. The ticks of some candles are gone, others were never aggregated, and new ones have sizes."""
    timescaledb = bool(unmigrated.query("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"))
    before = [each for each in read_migrations() if each.name < "0054" and (timescaledb or not each.timescaledb)]
    if timescaledb:
        install_paused(unmigrated, before)
    else:
        with closing(psycopg2.connect(unmigrated.url)) as connection, connection:
            migrate(connection, before)
    expected = make_ticks(16, days=5, count=2000)
    in_time = [one for number, one in enumerate(expected) if number % 9 != 0]
    insert_ticks(unmigrated, in_time)
    refresh(unmigrated)
    expire(unmigrated, START + 2 * DAY)
    insert_ticks(
        unmigrated, [one for one in expected if one not in in_time and one.time >= START + 2 * DAY], first=10_001
    )
    candles_before = {view: found(unmigrated, view) for view in VIEWS}
    assert all(candles_before.values())
    with closing(store_of(unmigrated)) as store:
        assert apply(store)
    for _ in range(2):
        assert {view: found(unmigrated, view) for view in VIEWS} == candles_before
        refresh(unmigrated)
    sized = [
        one._replace(symbol="NEW", exchange="Kraken", day_volume=None, size=number / 8)
        for number, one in enumerate(make_ticks(17, days=2, count=300, start=START + 3 * DAY))
    ]
    insert_ticks(unmigrated, sized, first=20_001)
    for _ in range(2):
        for view, width in VIEWS.items():
            assert found(unmigrated, f"{view} WHERE symbol = 'NEW'") == candles(sized, width)
        refresh(unmigrated)


DAYS, SYMBOLS = 20, 4
STEP = 5 * MINUTE


def insert_steps(database: Database) -> int:
    """Insert a tick of each of four symbols every five minutes for 20 days. Returns their number."""
    database.query(
        "INSERT INTO prices_real_time (time, symbol, price, day_volume, received_at, session, seq) "
        "SELECT t, 'S' || s, 1.0, extract(epoch FROM t)::bigint %% 86400, t, 1, row_number() OVER () "
        "FROM generate_series(%s, %s, %s) AS t, generate_series(1, %s) AS s",
        START, START + DAYS * DAY - SECOND, STEP, SYMBOLS,
    )  # fmt: skip
    database.query("ANALYZE")
    return database.count()


def rows_read(database: Database, sql: str, *parameters: object) -> int:
    """The number of ticks that a statement reads, including its functions."""
    counters = (
        "SELECT coalesce(sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)), 0)::bigint "
        "FROM pg_stat_xact_all_tables WHERE relname = 'prices_real_time' OR relname ~ '^_hyper_1_'"
    )
    with closing(psycopg2.connect(database.url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET max_parallel_workers_per_gather = 0")  # workers have their own counters
        cursor.execute(counters)
        ((before,),) = cursor.fetchall()
        cursor.execute(sql, parameters)
        cursor.execute(counters)
        ((after,),) = cursor.fetchall()
    return int(after) - int(before)


def test_candles_read_each_tick_once(backend: Database) -> None:
    """This includes their volume: only the first row of each symbol needs a look-up of the count before."""
    ticks_there = insert_steps(backend)
    assert ticks_there == 20 * 288 * 4
    for view in VIEWS:
        assert rows_read(backend, f"SELECT sum(volume) FROM {view}") < 1.1 * ticks_there, view


def test_candles_of_a_span_read_only_ticks_of_the_span(backend: Database) -> None:
    """On TimescaleDB whole chunks are read, each of one day."""
    ticks_there = insert_steps(backend)
    a_day = ticks_there // DAYS
    since = START + 10 * DAY + 6 * HOUR
    for asked in (
        "SELECT sum(volume) FROM candles('1 minute', %s, %s)",
        "SELECT sum(volume) FROM candles('1 hour', %s, %s) WHERE symbol = 'S2'",
    ):
        assert rows_read(backend, asked, since, since + 12 * HOUR) < 1.5 * a_day, asked


def test_retention_reads_each_tick_at_most_four_times(backend: Database) -> None:
    """It finds the oldest day, records the numbers, stores the candles and deletes the rows."""
    ticks_there = insert_steps(backend)
    asked = "CALL expire_day(%s)"
    assert rows_read(backend, asked, START + DAY) < 4 * ticks_there / DAYS
