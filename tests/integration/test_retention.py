"""Retention drops old ticks, keeps their candles and records the dropped numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest

from common.database.client import DatabaseClient
from common.database.migrations import apply
from common.errors import ConfigurationError
from tests.support.candles import (
    DAY,
    HOUR,
    START,
    Traded,
    assert_candles,
    compress,
    expire,
    insert_ticks,
    make_ticks,
    refresh,
    store_of,
)
from tests.support.pipeline import Database
from tests.support.timescaledb import needs_two_backends
from tests.support.waiting import wait_for
from tickpipe.maintenance import retention


def test_candles_outlive_their_ticks(backend: Database) -> None:
    expected = make_ticks(5, days=4)
    horizon = START + 2 * DAY
    insert_ticks(backend, expected)
    refresh(backend)
    expire(backend, horizon + 5 * HOUR)
    kept = [one for one in expected if one.time >= horizon]
    assert backend.query("SELECT count(*), min(time) >= %s FROM prices_real_time", horizon) == [(len(kept), True)]
    assert_candles(backend, expected)
    refresh(backend)
    assert_candles(backend, expected)
    late = Traded("AAPL", "NASDAQ", START + HOUR, START + 5 * DAY, 9999.0, 5.0)
    insert_ticks(backend, [late], session=2)
    refresh(backend)
    assert_candles(backend, expected)  # a row that changes no candle
    expire(backend, START + 3 * DAY)
    refresh(backend)
    assert_candles(backend, expected)
    assert backend.query("SELECT count(*) FROM prices_real_time") == [
        (sum(one.time >= START + 3 * DAY for one in expected),)
    ]


def test_each_day_of_ticks_is_dropped_in_its_own_transaction(backend: Database) -> None:
    """After an error on the third day two days are dropped, and the next run continues there."""
    expected = [one for one in make_ticks(16, days=4) if one.time >= START]
    insert_ticks(backend, expected)
    backend.query(
        "INSERT INTO candles_kept SELECT '1d', 'BTC/USD', 'Kraken', %s, 1, 1, 1, 1, 1, now(), now()", START + 2 * DAY
    )
    with pytest.raises(psycopg2.errors.UniqueViolation):
        expire(backend, START + 4 * DAY)
    backend.query("DELETE FROM candles_kept WHERE bucket >= %s", START + 2 * DAY)
    assert backend.query("SELECT candles_horizon(), count(*) FROM prices_real_time") == [
        (START + 2 * DAY, sum(one.time >= START + 2 * DAY for one in expected))
    ]
    assert backend.query("SELECT count(DISTINCT at) FROM feed_expired") == [(2,)]
    assert_candles(backend, expected)
    expire(backend, START + 4 * DAY)
    assert backend.query("SELECT candles_horizon() FROM feed_expired HAVING count(DISTINCT at) = 4") == [
        (START + 4 * DAY,)
    ]
    assert backend.query("SELECT sum(last_seq - first_seq + 1) FROM feed_expired") == [(len(expected),)]
    assert backend.query("SELECT count(*) FROM prices_real_time") == [(0,)]
    assert_candles(backend, expected)


def test_retention_skips_days_without_ticks(backend: Database) -> None:
    """A tick of 1970 does not cause 20,000 transactions."""
    ages = [datetime(1970, 1, 1, tzinfo=UTC), START, START + 9 * DAY]
    insert_ticks(backend, [Traded("AAPL", None, at, at, 1.0, None) for at in ages])
    expire(backend, START + 100 * DAY)
    assert backend.query("SELECT count(DISTINCT at), sum(last_seq - first_seq + 1) FROM feed_expired") == [(3, 3)]
    assert backend.query("SELECT candles_horizon()") == [(START + 100 * DAY,)]


def test_dropped_ticks_are_recorded_per_session(backend: Database) -> None:
    expected = make_ticks(6, days=2, count=300)
    insert_ticks(backend, expected[:150])
    insert_ticks(backend, expected[150:], session=2, first=501)
    horizon = START + DAY
    gone = {
        (1 if n < 150 else 2, n + 1 if n < 150 else n + 351) for n, one in enumerate(expected) if one.time < horizon
    }
    expire(backend, horizon)
    expire(backend, horizon)
    recorded = [
        (session, seq)
        for session, first, last in backend.query("SELECT session, first_seq, last_seq FROM feed_expired")
        for seq in range(first, last + 1)
    ]
    assert len(recorded) == len(set(recorded))
    assert set(recorded) == gone
    left = set(backend.query("SELECT session, seq FROM prices_real_time"))
    assert left.isdisjoint(gone)
    assert len(left) + len(gone) == len(expected)


def test_ticks_dropped_twice_are_recorded_once(backend: Database) -> None:
    expected = make_ticks(6, days=2, count=300)
    insert_ticks(backend, expected)
    expire(backend, START + DAY)
    with closing(store_of(backend)) as store:
        expired = retention.look(store).expired
        assert expired == sum(one.time < START + DAY for one in expected)
        insert_ticks(backend, expected[20:30], first=21)  # from an older Redis
        expire(backend, START + DAY)
        assert retention.look(store).expired == expired
    assert backend.query("SELECT count(*) FROM prices_real_time") == [(len(expected) - expired,)]


def test_todays_ticks_are_not_dropped(backend: Database) -> None:
    with pytest.raises(psycopg2.errors.RaiseException, match="not over"):
        expire(backend, datetime.now(UTC) + DAY)
    with pytest.raises(psycopg2.errors.RaiseException, match="READ COMMITTED"):
        backend.query("BEGIN ISOLATION LEVEL REPEATABLE READ; CALL expire_ticks('2020-01-01')")
    backend.query("ROLLBACK")


def test_retention_is_off_by_default(backend: Database) -> None:
    with closing(store_of(backend)) as store:
        assert retention.look(store)[1:] == (None, None, 0)
        old = datetime.now(UTC) - 100 * DAY
        insert_ticks(backend, [Traded("AAPL", None, old, old, 1.0, None)] * 3)
        retention.keep(store, timedelta(days=120))
        assert backend.query("SELECT count(*) FROM prices_real_time") == [(3,)]
        retention.keep(store, timedelta(days=90))
        now = retention.look(store)
        assert backend.query("SELECT count(*) FROM prices_real_time") == [(0,)]
        assert now.expired == 3
        assert now.ticks == (timedelta(days=90) if now.scheduled else None)
        retention.switch_off(store)
        assert retention.look(store).ticks is None


def test_retention_job_drops_old_ticks(hypertable: Database) -> None:
    with closing(store_of(hypertable)) as store:
        retention.keep(store, timedelta(days=90))
    old = datetime.now(UTC) - 100 * DAY
    insert_ticks(hypertable, [Traded("AAPL", None, old, old, 1.0, None)] * 3)
    ((job,),) = hypertable.query("SELECT job_id FROM timescaledb_information.jobs WHERE proc_name = 'expire_ticks_job'")
    hypertable.query("CALL run_job(%s)", job)
    assert hypertable.query("SELECT count(*) FROM prices_real_time") == [(0,)]
    assert hypertable.query("SELECT session, first_seq, last_seq FROM feed_expired") == [(1, 1, 3)]


@pytest.fixture
def elsewhere(timescale: Database) -> Iterator[DatabaseClient]:
    """A store whose search path starts with the schema `mine`."""
    timescale.query("CREATE EXTENSION IF NOT EXISTS timescaledb")
    timescale.query("CREATE SCHEMA mine")
    with closing(store_of(timescale)) as store:
        with store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("SET search_path TO mine, public")
        yield store
    timescale.query("RESET search_path")


def test_retention_job_finds_ticks_in_a_custom_schema(timescale: Database, elsewhere: DatabaseClient) -> None:
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


@needs_two_backends
def test_second_run_waits_for_the_first(hypertable: Database) -> None:
    """The scheduled job may start while an operator drops ticks."""
    expected = make_ticks(24, count=300)
    insert_ticks(hypertable, expected)
    with (
        closing(Database(hypertable.url)) as second,
        closing(psycopg2.connect(hypertable.url)) as first,
        ThreadPoolExecutor(1) as executor,
    ):
        with first, first.cursor() as cursor:
            cursor.execute("LOCK TABLE prices_real_time IN SHARE ROW EXCLUSIVE MODE")
            run = executor.submit(expire, second, START + 2 * DAY)
            waiting = "SELECT true FROM pg_locks WHERE relation = 'prices_real_time'::regclass AND NOT granted"
            wait_for(lambda: run.done() or hypertable.query(waiting), message="the second run waits")
            cursor.execute("CALL expire_day(%s)", (START + DAY,))
        run.result()
    assert hypertable.query("SELECT candles_horizon()") == [(START + 2 * DAY,)]
    assert_candles(hypertable, expected)


@pytest.mark.usefixtures("hypertable")
def test_login_with_its_own_schema_finds_the_hypertable_in_public(elsewhere: DatabaseClient) -> None:
    assert retention.look(elsewhere).scheduled
    assert apply(elsewhere) == []


@pytest.mark.parametrize("age", ["", "90", "0d", "-1d", "90 d", "d", "9999999d", "1h"])
def test_invalid_age_is_refused_with_its_value(age: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--ticks {re.escape(repr(age))} is not an age. Examples: 90d"):
        retention.read_age(age)


def test_compressed_ticks_have_candles_and_retention(hypertable: Database) -> None:
    expected = make_ticks(7)
    insert_ticks(hypertable, expected)
    compress(hypertable)
    refresh(hypertable)
    assert_candles(hypertable, expected)
    expire(hypertable, START + DAY)
    refresh(hypertable)
    assert_candles(hypertable, expected)


def test_retention_within_a_compressed_chunk_decompresses_only_what_it_needs(hypertable: Database) -> None:
    limit = "timescaledb.max_tuples_decompressed_per_dml_transaction"
    with closing(store_of(hypertable)) as store:
        apply(store, chunk_interval="2 days")
    expected = make_ticks(7)
    insert_ticks(hypertable, expected)
    compress(hypertable)
    hypertable.query(f"SET {limit} = 10")
    try:
        for horizon in (START + DAY, START + 2 * DAY):  # one is in the middle of a chunk
            expire(hypertable, horizon)
            assert_candles(hypertable, expected)
    finally:
        hypertable.query(f"RESET {limit}")
