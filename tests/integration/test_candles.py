"""Candles: on plain PostgreSQL and on a real TimescaleDB the same, and those computed in plain Python."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from common import tick
from common.errors import ConfigurationError
from common.settings import Secret
from consumer.schema import Migration, apply, migrate, read_migrations
from consumer.store import PRICES, PriceStore, Stored
from tests.support.candles import DAY, EPOCH, HOUR, MINUTE, Candle, Traded, candles, insert_ticks, make_ticks
from tests.support.capture import make_events, read_capture, row, ticks
from tests.support.pipeline import Database
from tests.support.timescaledb import install_paused, refresh_aggregate
from tests.support.told import entry
from tickpipe import retention

REAL_CAPTURE = Path(__file__).parents[3] / "shared/data/fx-ticks.ndjson"
COLUMNS = "symbol, bucket, open, high, low, close, ticks, volume"
VIEWS = {"candles_1m": MINUTE, "candles_1h": HOUR, "candles_1d": DAY}
START = datetime(2026, 3, 2, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def store_of(database: Database) -> PriceStore:
    return PriceStore(Secret(database.url))


@pytest.fixture
def hypertable(timescale: Database) -> Database:
    """A database with the schema, on a real TimescaleDB. Only the test runs its jobs."""
    install_paused(timescale)
    return timescale


@pytest.fixture(params=["plain", "timescale"])
def home(request: pytest.FixtureRequest) -> Database:
    """A database with the schema, in each of the two homes."""
    found: Database = request.getfixturevalue("database" if request.param == "plain" else "hypertable")
    return found


def refresh(database: Database) -> None:
    """What the policies do, at once; nothing on plain PostgreSQL."""
    if database.query("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'"):
        for width in ("1m", "1h", "1d"):
            refresh_aggregate(database, width)


def found(database: Database, view: str) -> list[Candle]:
    return [Candle(*row) for row in database.query(f"SELECT {COLUMNS} FROM {view} ORDER BY symbol, bucket")]


def assert_candles(database: Database, expected: list[Traded]) -> None:
    """All views show exactly the candles of these ticks. (Counts are quarters: sums of them are exact.)"""
    for view, width in VIEWS.items():
        assert found(database, view) == candles(expected, width), view


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_candles_are_those_computed_in_python(home: Database, seed: int) -> None:
    expected = make_ticks(seed)
    assert len({bar.volume for bar in candles(expected, MINUTE)}) > 20
    insert_ticks(home, expected)
    assert_candles(home, expected)  # all of it just now
    refresh(home)
    assert_candles(home, expected)  # all of it from the aggregates
    since, until = START + DAY + 3 * HOUR, START + DAY + 9 * HOUR
    inside = [bar for bar in candles(expected, 5 * MINUTE) if since <= bar.bucket < until]
    assert found(home, f"candles('5 minutes', '{since}', '{until}')") == inside
    assert len(inside) > 5
    since, until = since + timedelta(seconds=30), until + timedelta(seconds=30)
    inside = [bar for bar in candles(expected, MINUTE) if since <= bar.bucket < until]
    assert found(home, f"candles('1 minute', '{since}', '{until}')") == inside


def test_a_span_without_an_end_that_is_known_has_no_candles(home: Database) -> None:
    insert_ticks(home, make_ticks(10, count=100))
    for _ in range(2):
        assert found(home, "candles('1 minute', NULL, 'infinity')") == []
        assert found(home, "candles('1 minute', '-infinity', NULL)") == []
        assert len(found(home, "candles('1 minute', '-infinity', 'infinity')")) > 50
        refresh(home)


@pytest.mark.skipif(not REAL_CAPTURE.exists(), reason="the recorded prices are not beside this repository")
def test_candles_of_recorded_prices_given_a_volume(home: Database) -> None:
    """Real quotes, as the consumer stores them. FX has no volume: dollar-yen gets one that counts up over the day."""
    events = [
        event if event["symbol"] != "USD/JPY" else {**event, "day_volume": event["timestamp"] % 86_400 // 7 * 0.25}
        for event in read_capture(REAL_CAPTURE)
    ]
    session = 1_357_000_000_000_000
    entries = [entry(tick.encode(each)) for each in ticks(events, session)]
    with closing(store_of(home)) as store:
        assert store.insert_block(PRICES, "prices", entries) == Stored(10_500, 0, 0)
    expected = [
        Traded(symbol, exchange, time, EPOCH + timedelta(microseconds=session + 3 * seq), price, day_volume)
        for seq, (symbol, time, price, day_volume, _, _, exchange) in enumerate(map(row, events), 1)
    ]
    assert sum(bar.volume or 0 for bar in candles(expected, DAY)) > 0
    assert_candles(home, expected)
    refresh(home)
    assert_candles(home, expected)


def test_the_newest_tick_and_late_ones_are_in(home: Database) -> None:
    expected = make_ticks(4, count=600)
    late = [one for number, one in enumerate(expected) if number % 5 == 0]
    in_time = [one for number, one in enumerate(expected) if number % 5 != 0]
    half = len(in_time) // 2
    insert_ticks(home, in_time[:half])
    refresh(home)
    insert_ticks(home, in_time[half:], first=10_001)
    later = in_time[half].time.replace(hour=23, minute=59)
    newest = [one for one in in_time if one.time > later]
    assert newest
    assert found(home, f"candles_1m WHERE bucket > '{later}'") == [
        bar for bar in candles(in_time, MINUTE) if bar.bucket > later
    ]
    insert_ticks(home, late, first=20_001)  # a spool is replayed: days that have long been aggregated
    refresh(home)
    assert_candles(home, expected)


def test_volume_follows_the_rules_of_a_counter(home: Database) -> None:
    def at(minutes: int, count: float | None, exchange: str | None = "NASDAQ") -> Traded:
        time = START + timedelta(hours=22, minutes=minutes)
        return Traded("AAPL", exchange, time, time, 1.0, count)

    insert_ticks(
        home,
        [
            at(0, 100.0),  # the first there is: no bar before
            at(1, 130.0),
            at(10, 150.0),  # the bar before is nine minutes ago
            at(11, 140.0),  # a correction
            at(12, None),
            at(13, 145.0),
            at(14, 50.0),  # less than half is left: it began again
            at(15, 7.0, "ARCA"),  # a counter of its own
            at(16, 60.0),
            at(16, 9.0, "ARCA"),
            at(110, 80.0),
            at(125, 70.0),  # a new trading day: a fall of any size is a new beginning
        ],
    )
    for _ in range(2):
        assert [bar.volume for bar in found(home, "candles_1m")] == [
            0.0, 30.0, 20.0, 0.0, None, 5.0, 50.0, 0.0, 10.0 + 2.0, 20.0, 70.0
        ]  # fmt: skip
        assert [bar.volume for bar in found(home, "candles_1h")] == [117.0, 20.0, 70.0]
        assert [bar.volume for bar in found(home, "candles_1d")] == [137.0, 70.0]
        refresh(home)


def test_a_time_that_strays_into_the_minute_before_counts_no_volume_twice(home: Database) -> None:
    rng = random.Random(9)
    begun, counts = START + 22 * HOUR, list(accumulate(rng.randrange(1, 50) * 0.25 for _ in range(4000)))
    straying = []
    for number, count in enumerate(counts):  # across midnight, which this counter does not mind
        received_at = begun + timedelta(seconds=3 * number)
        time = received_at - timedelta(seconds=rng.randrange(40) if number > 20 and rng.random() < 0.2 else 0)
        straying.append(Traded("AAPL", None, time, received_at, 1.0, count))
    insert_ticks(home, straying)
    for _ in range(2):
        for view in VIEWS:
            assert sum(bar.volume or 0 for bar in found(home, view)) == counts[-1] - counts[0], view
        assert_candles(home, straying)
        refresh(home)


@pytest.mark.parametrize(
    "counts", [[-1.7e308, 1.0, -1.7e308, 1.7e308], [-10.0, -20.0, -5.0, -50.0], [5.0, -1.0, 7.0, 2.0]]
)
def test_a_counter_below_zero_is_none(home: Database, counts: list[float]) -> None:
    odd = [
        Traded("AAPL", None, START + number * 40 * SECOND, START + number * 40 * SECOND, 1.0, count)
        for number, count in enumerate(counts)
    ]
    insert_ticks(home, odd)
    for _ in range(2):
        assert all((bar.volume or 0) >= 0 for bar in found(home, "candles_1m"))
        assert_candles(home, odd)
        refresh(home)


def policies(database: Database) -> None:
    """What the scheduler does, at once."""
    for (job,) in database.query(
        "SELECT job_id FROM timescaledb_information.jobs "
        "WHERE proc_name = 'policy_refresh_continuous_aggregate' ORDER BY job_id"
    ):
        database.query("CALL run_job(%s)", job)


def test_the_running_bars_go_on_after_a_refresh_by_hand(hypertable: Database) -> None:
    assert_running_bars_go_on(hypertable, lambda: refresh(hypertable))


def test_the_running_bars_go_on_after_a_plain_table_was_moved(timescale: Database) -> None:
    make_plain(timescale)
    assert_running_bars_go_on(timescale, lambda: install_paused(timescale, to_timescaledb=True))


def assert_running_bars_go_on(database: Database, aggregate: Callable[[], object]) -> None:
    """Ticks; all of it aggregated, the running minute, hour and day, too; more ticks, before and after the policies."""
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


def test_the_policies_aggregate_what_has_piled_up_in_one_transaction(hypertable: Database) -> None:
    """Else the candles would have a hole meanwhile, from the newest bars that are aggregated to the oldest."""
    insert_ticks(hypertable, make_ticks(12, days=4))
    policies(hypertable)
    for (table,) in hypertable.query(
        "SELECT format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name) "
        "FROM timescaledb_information.continuous_aggregates"
    ):
        ((bars, written),) = hypertable.query(f"SELECT count(*), count(DISTINCT xmin::text) FROM {table}")
        assert bars > written == 1


def test_a_tick_from_the_future_does_not_keep_the_newest_out(hypertable: Database) -> None:
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
        [("1m", START + 2 * DAY, None)],  # only the newest
        [("1m", START + 2 * DAY, START + 3 * DAY), ("1m", None, START + DAY)],  # a hole
        [("1m", START + DAY + 7 * MINUTE, START + DAY + 9 * HOUR), ("1h", START + DAY, START + DAY + 8 * HOUR)],
        [("1h", None, None), ("1d", None, None)],  # of nothing
        [("1m", None, None), ("1d", START + DAY, START + 2 * DAY)],
        [("1m", None, None), ("1h", None, None), ("1d", None, None)],
    ],
    ids=["newest", "hole", "middle", "widths alone", "no hours", "all"],
)
def test_candles_are_right_whatever_is_aggregated(
    hypertable: Database, aggregated: list[tuple[str, datetime | None, datetime | None]]
) -> None:
    """In every state: late ticks of any age after it, too, though no job runs."""
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


def test_candles_are_right_where_the_logs_of_timescaledb_are_unknown(hypertable: Database) -> None:
    """A later version may rename them: then nothing counts as aggregated."""
    expected = make_ticks(14, count=300)
    insert_ticks(hypertable, expected)
    refresh_aggregate(hypertable, "1m", START, START + DAY)
    hypertable.query(
        "DO $$ BEGIN EXECUTE (SELECT replace(pg_get_functiondef(oid), 'continuous_aggs_', 'renamed_aggs_') "
        "FROM pg_proc WHERE proname = 'unaggregated'); END $$"
    )
    assert hypertable.query("SELECT unaggregated('1m')::text") == [("{[-infinity,infinity)}",)]
    assert_candles(hypertable, expected)


def test_a_database_of_an_older_version_is_upgraded(timescale: Database) -> None:
    """It has the candles of then, and a migration that is gone: it refreshed the aggregates."""
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


# Retention.


def expire(database: Database, before: datetime) -> None:
    database.query("CALL expire_ticks(%s)", before)


def test_candles_outlive_their_ticks(home: Database) -> None:
    expected = make_ticks(5, days=4)
    horizon = START + 2 * DAY
    insert_ticks(home, expected)
    refresh(home)
    expire(home, horizon + 5 * HOUR)
    kept = [one for one in expected if one.time >= horizon]
    assert home.query("SELECT count(*), min(time) >= %s FROM prices_real_time", horizon) == [(len(kept), True)]
    assert_candles(home, expected)
    refresh(home)
    assert_candles(home, expected)
    late = Traded("AAPL", "NASDAQ", START + HOUR, START + 5 * DAY, 9999.0, 5.0)
    insert_ticks(home, [late], session=2)
    refresh(home)
    assert_candles(home, expected)  # it is a row, but changes no candle
    expire(home, START + 3 * DAY)
    refresh(home)
    assert_candles(home, expected)
    assert home.query("SELECT count(*) FROM prices_real_time") == [
        (sum(one.time >= START + 3 * DAY for one in expected),)
    ]


def test_each_day_of_ticks_is_dropped_in_a_transaction_of_its_own(home: Database) -> None:
    """An error or an interruption on the third day leaves two days dropped, and the next run goes on there."""
    expected = [one for one in make_ticks(16, days=4) if one.time >= START]
    insert_ticks(home, expected)
    home.query(
        "INSERT INTO candles_kept SELECT '1d', 'BTC/USD', 'Kraken', %s, 1, 1, 1, 1, 1, now(), now()", START + 2 * DAY
    )
    with pytest.raises(psycopg2.errors.UniqueViolation):
        expire(home, START + 4 * DAY)
    home.query("DELETE FROM candles_kept WHERE bucket >= %s", START + 2 * DAY)
    assert home.query("SELECT candles_horizon(), count(*) FROM prices_real_time") == [
        (START + 2 * DAY, sum(one.time >= START + 2 * DAY for one in expected))
    ]
    assert home.query("SELECT count(DISTINCT at) FROM feed_expired") == [(2,)]
    assert_candles(home, expected)
    expire(home, START + 4 * DAY)
    assert home.query("SELECT candles_horizon() FROM feed_expired HAVING count(DISTINCT at) = 4") == [
        (START + 4 * DAY,)
    ]
    assert home.query("SELECT sum(last_seq - first_seq + 1) FROM feed_expired") == [(len(expected),)]
    assert home.query("SELECT count(*) FROM prices_real_time") == [(0,)]
    assert_candles(home, expected)


def test_days_without_ticks_cost_retention_nothing(home: Database) -> None:
    """A tick of 1970 is no reason for 20,000 transactions."""
    ages = [datetime(1970, 1, 1, tzinfo=UTC), START, START + 9 * DAY]
    insert_ticks(home, [Traded("AAPL", None, at, at, 1.0, None) for at in ages])
    expire(home, START + 100 * DAY)
    assert home.query("SELECT count(DISTINCT at), sum(last_seq - first_seq + 1) FROM feed_expired") == [(3, 3)]
    assert home.query("SELECT candles_horizon()") == [(START + 100 * DAY,)]


def test_what_was_dropped_is_on_record_session_by_session(home: Database) -> None:
    expected = make_ticks(6, days=2, count=300)
    insert_ticks(home, expected[:150])
    insert_ticks(home, expected[150:], session=2, first=501)
    horizon = START + DAY
    gone = {
        (1 if n < 150 else 2, n + 1 if n < 150 else n + 351) for n, one in enumerate(expected) if one.time < horizon
    }
    expire(home, horizon)
    expire(home, horizon)
    recorded = [
        (session, seq)
        for session, first, last in home.query("SELECT session, first_seq, last_seq FROM feed_expired")
        for seq in range(first, last + 1)
    ]
    assert len(recorded) == len(set(recorded))
    assert set(recorded) == gone
    left = set(home.query("SELECT session, seq FROM prices_real_time"))
    assert left.isdisjoint(gone)
    assert len(left) + len(gone) == len(expected)


def test_what_is_dropped_delivered_again_and_dropped_again_is_on_record_once(home: Database) -> None:
    expected = make_ticks(6, days=2, count=300)
    insert_ticks(home, expected)
    expire(home, START + DAY)
    with closing(store_of(home)) as store:
        expired = retention.look(store).expired
        assert expired == sum(one.time < START + DAY for one in expected)
        insert_ticks(home, expected[20:30], first=21)  # from a Redis of before
        expire(home, START + DAY)
        assert retention.look(store).expired == expired
    assert home.query("SELECT count(*) FROM prices_real_time") == [(len(expected) - expired,)]


def test_ticks_of_today_are_not_dropped(home: Database) -> None:
    with pytest.raises(psycopg2.errors.RaiseException, match="not over"):
        expire(home, datetime.now(UTC) + DAY)
    with pytest.raises(psycopg2.errors.RaiseException, match="READ COMMITTED"):
        home.query("BEGIN ISOLATION LEVEL REPEATABLE READ; CALL expire_ticks('2020-01-01')")
    home.query("ROLLBACK")


def test_retention_is_off_until_it_is_asked_for(home: Database) -> None:
    with closing(store_of(home)) as store:
        assert retention.look(store)[1:] == (None, None, 0)
        old = datetime.now(UTC) - 100 * DAY
        insert_ticks(home, [Traded("AAPL", None, old, old, 1.0, None)] * 3)
        retention.keep(store, timedelta(days=120))
        assert home.query("SELECT count(*) FROM prices_real_time") == [(3,)]
        retention.keep(store, timedelta(days=90))
        now = retention.look(store)
        assert home.query("SELECT count(*) FROM prices_real_time") == [(0,)]
        assert now.expired == 3
        assert now.ticks == (timedelta(days=90) if now.scheduled else None)
        retention.switch_off(store)
        assert retention.look(store).ticks is None


def test_the_job_drops_what_has_grown_old(hypertable: Database) -> None:
    with closing(store_of(hypertable)) as store:
        retention.keep(store, timedelta(days=90))
    old = datetime.now(UTC) - 100 * DAY
    insert_ticks(hypertable, [Traded("AAPL", None, old, old, 1.0, None)] * 3)
    ((job,),) = hypertable.query("SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = 'expire_ticks_job'")
    hypertable.query("CALL run_job(%s)", job)
    assert hypertable.query("SELECT count(*) FROM prices_real_time") == [(0,)]
    assert hypertable.query("SELECT session, first_seq, last_seq FROM feed_expired") == [(1, 1, 3)]


@pytest.fixture
def elsewhere(timescale: Database) -> Iterator[PriceStore]:
    """A store that finds the schema `mine` first."""
    timescale.query("CREATE EXTENSION IF NOT EXISTS timescaledb")
    timescale.query("CREATE SCHEMA mine")
    with closing(store_of(timescale)) as store:
        with store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("SET search_path TO mine, public")
        yield store
    timescale.query("RESET search_path")


def test_ticks_in_a_schema_of_their_own_are_dropped_by_a_job_that_does_not_know_it(
    timescale: Database, elsewhere: PriceStore
) -> None:
    apply(elsewhere)
    retention.keep(elsewhere, timedelta(days=90))
    timescale.query("SET search_path TO public")
    timescale.query(
        "INSERT INTO mine.prices_real_time (time, symbol, price, received_at, session, seq) "
        "SELECT at, 'AAPL', 1, at, 1, 1 FROM (SELECT now() - interval '100 days' AS at) AS old"
    )
    ((job,),) = timescale.query("SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = 'expire_ticks_job'")
    timescale.query("CALL run_job(%s)", job)
    assert timescale.query("SELECT session, first_seq, last_seq FROM mine.feed_expired") == [(1, 1, 1)]
    assert timescale.query("SELECT mine.ticks_size() > 0") == [(True,)]


@pytest.mark.usefixtures("hypertable")
def test_a_login_with_a_schema_of_its_own_finds_the_hypertable_in_public(elsewhere: PriceStore) -> None:
    assert retention.look(elsewhere).scheduled
    assert apply(elsewhere) == []


@pytest.mark.parametrize("age", ["", "90", "0d", "-1d", "90 d", "d", "9999999d", "1h"])
def test_an_age_that_is_none_is_refused_by_name(age: str) -> None:
    with pytest.raises(ConfigurationError, match="it looks like 90d"):
        retention.read_age(age)


# Columnstore.


def compress(database: Database) -> None:
    for (chunk,) in database.query("SELECT show_chunks('prices_real_time')::text"):
        database.query("SELECT compress_chunk(%s)", chunk)


def test_a_block_delivered_again_into_compressed_chunks_stores_nothing_twice(hypertable: Database) -> None:
    ((version,),) = hypertable.query("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
    if tuple(map(int, version.split(".")[:2])) < (2, 18):
        pytest.skip(f"TimescaleDB {version} leaves new rows out beside old ones (its issue 7672): `doctor` says so")
    session = 1_760_000_000_000_000
    entries = [entry(tick.encode(each)) for each in ticks(make_events(5000), session)]
    with closing(store_of(hypertable)) as store:
        assert store.insert_block(PRICES, "prices", entries[:4000]) == Stored(4000, 0, 0)
        compress(hypertable)
        assert hypertable.query("SELECT bool_and(is_compressed) FROM timescaledb_information.chunks "
                                "WHERE hypertable_name = 'prices_real_time'") == [(True,)]  # fmt: skip
        assert store.insert_block(PRICES, "prices", entries[:2000]) == Stored(0, 2000, 0)
        assert store.insert_block(PRICES, "prices", entries) == Stored(1000, 4000, 0)
    assert hypertable.query("SELECT count(*), count(DISTINCT seq) FROM prices_real_time") == [(5000, 5000)]


def test_the_columnstore_is_as_documented_and_old_chunks_go_there(hypertable: Database) -> None:
    settings = hypertable.query("SELECT attname, segmentby_column_index, orderby_column_index, orderby_asc "
                                "FROM timescaledb_information.compression_settings "
                                "WHERE hypertable_name = 'prices_real_time' ORDER BY 2, 3")  # fmt: skip
    assert settings == [
        ("symbol", 1, None, None), ("time", None, 1, False), ("session", None, 2, True), ("seq", None, 3, True)
    ]  # fmt: skip
    old = datetime.now(UTC) - 9 * DAY
    insert_ticks(hypertable, [Traded("AAPL", None, old, old, 1.0, None)])
    ((job, after),) = hypertable.query(
        "SELECT job_id, coalesce(config ->> 'compress_after', config ->> 'after') FROM timescaledb_information.jobs "
        "WHERE hypertable_name = 'prices_real_time' AND proc_name ~ 'compression|columnstore'"
    )
    assert after == "7 days"
    hypertable.query("CALL run_job(%s)", job)
    assert hypertable.query("SELECT is_compressed FROM timescaledb_information.chunks "
                            "WHERE hypertable_name = 'prices_real_time'") == [(True,)]  # fmt: skip


def test_candles_of_compressed_ticks_and_retention_of_them(hypertable: Database) -> None:
    expected = make_ticks(7)
    insert_ticks(hypertable, expected)
    compress(hypertable)
    refresh(hypertable)
    assert_candles(hypertable, expected)
    expire(hypertable, START + DAY)
    refresh(hypertable)
    assert_candles(hypertable, expected)


def test_retention_that_cuts_a_compressed_chunk_unpacks_as_much_as_it_must(hypertable: Database) -> None:
    limit = "timescaledb.max_tuples_decompressed_per_dml_transaction"
    with closing(store_of(hypertable)) as store:
        apply(store, chunk_interval="2 days")
    expected = make_ticks(7)
    insert_ticks(hypertable, expected)
    compress(hypertable)
    hypertable.query(f"SET {limit} = 10")
    try:
        for horizon in (START + DAY, START + 2 * DAY):  # one of them is in the middle of a chunk
            expire(hypertable, horizon)
            assert_candles(hypertable, expected)
    finally:
        hypertable.query(f"RESET {limit}")


# Speed, read from the plan.


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def test_an_hour_of_months_of_minutes_is_read_by_index(hypertable: Database) -> None:
    """What is read for an hour is about an hour, though there are three months."""
    hypertable.query(
        "INSERT INTO prices_real_time (time, symbol, price, day_volume, received_at, session, seq) "
        "SELECT t, 'BTC/USD', 1.0, extract(epoch FROM t)::bigint %% 86400, t, 1, row_number() OVER () "
        "FROM generate_series(%s - interval '90 days', %s, interval '1 minute') AS t",
        START, START,
    )  # fmt: skip
    refresh_aggregate(hypertable, "1m")
    hypertable.query("ANALYZE")
    asked = f"SELECT {COLUMNS} FROM candles_1m WHERE symbol = 'BTC/USD' AND bucket > %s"
    since = START - HOUR
    assert len(hypertable.query(asked, since)) == 60
    ((plans,),) = hypertable.query(f"EXPLAIN (ANALYZE, FORMAT json) {asked}", since)
    (plan,) = json.loads(plans) if isinstance(plans, str) else plans
    read = 0
    for node in nodes(plan["Plan"]):
        if "Relation Name" in node:
            read += (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    assert read < 1500, "60 bars, and for each the bars of the five minutes before"


DAYS, SYMBOLS = 20, 4
STEP = 5 * MINUTE


def insert_steps(database: Database) -> int:
    """A tick of each of four symbols every five minutes, for 20 days; returns how many."""
    database.query(
        "INSERT INTO prices_real_time (time, symbol, price, day_volume, received_at, session, seq) "
        "SELECT t, 'S' || s, 1.0, extract(epoch FROM t)::bigint %% 86400, t, 1, row_number() OVER () "
        "FROM generate_series(%s, %s, %s) AS t, generate_series(1, %s) AS s",
        START, START + DAYS * DAY - SECOND, STEP, SYMBOLS,
    )  # fmt: skip
    database.query("ANALYZE")
    return database.count()


def rows_read(database: Database, sql: str, *parameters: object) -> int:
    """The ticks that a statement reads, in functions, too."""
    counted = (
        "SELECT coalesce(sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)), 0)::bigint "
        "FROM pg_stat_xact_all_tables WHERE relname = 'prices_real_time' OR relname ~ '^_hyper_1_'"
    )
    with closing(psycopg2.connect(database.url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET max_parallel_workers_per_gather = 0")  # workers have counters of their own
        cursor.execute(counted)
        ((before,),) = cursor.fetchall()
        cursor.execute(sql, parameters)
        cursor.execute(counted)
        ((after,),) = cursor.fetchall()
    return int(after) - int(before)


def test_candles_read_each_tick_once(home: Database) -> None:
    """Their volume, too: the count before is that of the row before, looked up for the first of each symbol alone."""
    ticks_there = insert_steps(home)
    assert ticks_there == 20 * 288 * 4
    for view in VIEWS:
        assert rows_read(home, f"SELECT sum(volume) FROM {view}") < 1.1 * ticks_there, view


def test_candles_of_a_span_read_the_ticks_of_the_span(home: Database) -> None:
    """However long the table is. On TimescaleDB whole chunks are read, of a day each."""
    ticks_there = insert_steps(home)
    a_day = ticks_there // DAYS
    since = START + 10 * DAY + 6 * HOUR
    for asked in (
        "SELECT sum(volume) FROM candles('1 minute', %s, %s)",
        "SELECT sum(volume) FROM candles('1 hour', %s, %s) WHERE symbol = 'S2'",
    ):
        assert rows_read(home, asked, since, since + 12 * HOUR) < 1.5 * a_day, asked


def test_retention_reads_each_tick_a_few_times(home: Database) -> None:
    """When it looks for the oldest day, records the numbers, makes the candles, and drops them row by row."""
    ticks_there = insert_steps(home)
    asked = "CALL expire_day(%s)"
    assert rows_read(home, asked, START + DAY) < 4 * ticks_there / DAYS


# Moving over.


def test_a_plain_database_is_moved_by_one_command_and_not_before(timescale: Database) -> None:
    expected = make_ticks(8)
    make_plain(timescale)
    insert_ticks(timescale, expected)
    assert_candles(timescale, expected)
    checksum = "SELECT count(*), sum(hashtext(p::text)::bigint) FROM prices_real_time AS p"
    before = timescale.query(checksum)
    with closing(store_of(timescale)) as store:
        assert apply(store) == []
        assert timescale.query("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'") == []
        moved = apply(store, to_timescaledb=True, chunk_interval="12 hours")
        assert moved
        assert all(name.endswith(".timescaledb.sql") for name in moved)
        assert apply(store, to_timescaledb=True) == []
    assert timescale.query(checksum) == before
    assert timescale.query("SELECT count(*) FROM show_chunks('prices_real_time')")[0][0] >= 5
    assert_candles(timescale, expected)


def make_plain(database: Database) -> None:
    """The schema as it is where TimescaleDB is not."""
    with closing(psycopg2.connect(database.url)) as connection, connection:
        migrate(connection, [each for each in read_migrations() if not each.timescaledb])


def test_the_chunk_interval_is_an_option(timescale: Database) -> None:
    with closing(store_of(timescale)) as store:
        with pytest.raises(ConfigurationError, match="an interval looks like"):
            apply(store, chunk_interval="soon")
        apply(store, chunk_interval="6 hours")
        interval = (
            "SELECT time_interval FROM timescaledb_information.dimensions WHERE hypertable_name = 'prices_real_time'"
        )
        assert timescale.query(interval) == [(timedelta(hours=6),)]
        apply(store, chunk_interval="2 days")
        assert timescale.query(interval) == [(timedelta(days=2),)]
        apply(store)
        assert timescale.query(interval) == [(timedelta(days=2),)]
