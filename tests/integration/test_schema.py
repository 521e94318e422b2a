"""The migrations on a real PostgreSQL: applied once, with constraints that refuse invalid rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest

from common.database.client import DatabaseClient
from common.database.connections import connect
from common.database.migrations import SQL_FOLDER, Migration, apply, migrate, read_migrations
from common.errors import ConfigurationError
from common.settings import Secret
from common.threads import in_thread
from tests.support.capture import make_events, ticks
from tests.support.pipeline import Database, Pipeline
from tests.support.waiting import PATIENCE, wait_for

SESSION = 1_760_000_000_000_000
#: In a PostgreSQL without TimescaleDB.
PLAIN = sorted(path.name for path in SQL_FOLDER.glob("*.sql") if not path.name.endswith(".timescaledb.sql"))


@contextmanager
def connected(database: Database) -> Iterator[psycopg2.extensions.connection]:
    """A connection that commits at the end."""
    with closing(psycopg2.connect(database.url)) as connection, connection:
        yield connection


def applied(database: Database) -> list[str]:
    return [name for (name,) in database.query("SELECT name FROM tickpipe_migrations ORDER BY at, name")]


def insert(database: Database, **values: object) -> None:
    """Insert a valid row, except for these values."""
    row = {
        "time": "2025-10-09 08:53:20+00", "symbol": "BTC/USD", "price": 1.0, "received_at": "2025-10-09 08:53:20+00",
        "session": SESSION, "seq": 1, **values,
    }  # fmt: skip
    marks = ", ".join(["%s"] * len(row))
    database.query(f"INSERT INTO prices_real_time ({', '.join(row)}) VALUES ({marks})", *row.values())


# Applying.


def test_migrations_are_applied_once_and_in_order(empty_database: Database) -> None:
    with connected(empty_database) as connection:
        assert migrate(connection, read_migrations()) == PLAIN
    with connected(empty_database) as connection:
        assert migrate(connection, read_migrations()) == []
    assert applied(empty_database) == PLAIN


def test_migrate_reports_what_it_applied(empty_pipeline: Pipeline) -> None:
    first = empty_pipeline.processes.start("tickpipe", "migrate")
    assert first.wait() == 0
    assert first.last_log_line() == [f"applied: {', '.join(PLAIN)}"]
    second = empty_pipeline.processes.start("tickpipe", "migrate")
    assert second.wait() == 0
    assert second.last_log_line() == ["nothing to do: the schema is up to date"]


def test_second_migration_waits_and_has_nothing_to_do(empty_database: Database) -> None:
    second = DatabaseClient(Secret(empty_database.url))
    with connected(empty_database) as first:
        assert migrate(first, read_migrations()) == PLAIN
        applying = in_thread(apply, second)
        wait_for(empty_database.waiting, message="the second waits for the advisory lock")
        assert not applying.done()
    applying.result(timeout=PATIENCE)
    second.close()
    assert applied(empty_database) == PLAIN


def test_one_of_many_concurrent_migrations_applies_everything(empty_database: Database) -> None:
    stores = [DatabaseClient(Secret(empty_database.url)) for _ in range(8)]
    with ThreadPoolExecutor(len(stores)) as at_once:
        done = sorted(at_once.map(apply, stores, timeout=PATIENCE), key=len)
    assert done == [[]] * 7 + [PLAIN]
    for store in stores:
        store.close()
    assert empty_database.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


def test_three_consumers_start_together_on_an_empty_database(empty_pipeline: Pipeline) -> None:
    pipeline = empty_pipeline
    events = make_events(50)
    pipeline.append(list(ticks(events, SESSION)))
    consumers = [pipeline.consumer("--drain") for _ in range(3)]
    assert [consumer.wait() for consumer in consumers] == [0, 0, 0]
    assert sum("schema: applied" in consumer.said() for consumer in consumers) == 1
    assert applied(pipeline.database) == PLAIN
    pipeline.assert_stored_exactly(events)


def test_failed_migration_is_rolled_back(empty_database: Database) -> None:
    migrations = [
        *read_migrations(),
        Migration("9999_broken.sql", "CREATE TABLE half (); SELECT 1 / 0"),
    ]
    with pytest.raises(psycopg2.errors.DivisionByZero), connected(empty_database) as connection:
        migrate(connection, migrations)
    assert empty_database.query("SELECT to_regclass('half'), to_regclass('prices_real_time')") == [(None, None)]
    assert empty_database.query("SELECT to_regclass('tickpipe_migrations')") == [(None,)]


def test_later_migration_is_applied_to_an_existing_schema(fresh_database: Database) -> None:
    insert(fresh_database)
    later = Migration("9999_more.sql", "ALTER TABLE prices_real_time ADD COLUMN more int DEFAULT 7")
    with connected(fresh_database) as connection:
        assert migrate(connection, [*read_migrations(), later]) == ["9999_more.sql"]
    assert fresh_database.query("SELECT seq, more FROM prices_real_time") == [(1, 7)]


def test_migration_changed_after_it_was_applied_is_refused(database: Database) -> None:
    first, *others = read_migrations()
    changed = first._replace(sql=first.sql + "\nSELECT 1;")
    later = Migration("9999_more.sql", "CREATE TABLE more ()")
    with (
        pytest.raises(ConfigurationError, match=rf"sql/{first.name} was applied .* has changed"),
        connected(database) as connection,
    ):
        migrate(connection, [changed, *others, later])
    assert database.query("SELECT to_regclass('more')") == [(None,)]


def test_database_of_a_later_version_is_left_unchanged(fresh_database: Database) -> None:
    later = Migration("9999_more.sql", "CREATE TABLE more ()")
    with connected(fresh_database) as connection:
        migrate(connection, [*read_migrations(), later])
    with connected(fresh_database) as connection:
        assert migrate(connection, read_migrations()) == []


def test_foreign_table_is_left_untouched(empty_pipeline: Pipeline) -> None:
    pipeline = empty_pipeline  # for example the table of the TimescaleDB tutorial
    pipeline.database.query("CREATE TABLE prices_real_time (time timestamptz, symbol text, price float8)")
    consumer = pipeline.consumer()
    assert consumer.wait() == 2
    first, *commands = consumer.last_log_line()
    assert first.startswith("consumer: the database has a table prices_real_time of another program")
    assert [command.strip() for command in commands][-1] == "tickpipe import --table prices_tutorial"
    assert pipeline.database.query("SELECT to_regclass('tickpipe_migrations')") == [(None,)]


# Encodings.


def make_database(pipeline: Pipeline, encoding: str) -> str:
    """The URL of a new, empty database on another server with this encoding."""
    name = f"in_{encoding.lower()}"
    pipeline.database.query(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    return pipeline.servers.database_url(name)


def test_sql_ascii_database_stores_every_text(empty_pipeline: Pipeline) -> None:
    pipeline = empty_pipeline  # `initdb` uses SQL_ASCII if the locale is C
    url = make_database(pipeline, "SQL_ASCII")
    good = next(ticks(make_events(1), SESSION))
    pipeline.append([good._replace(exchange="Börse €"), good._replace(seq="2", symbol="€" * 90)])
    assert pipeline.consumer("--drain", DATABASE_URL=url).wait() == 0
    with closing(connect(Secret(url))) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT exchange FROM prices_real_time")
        assert cursor.fetchall() == [("Börse €",)]
        cursor.execute("SELECT seq, reason ~ '€' FROM dead_letters")
        assert cursor.fetchall() == [(2, True)]


def test_database_with_a_limited_encoding_is_refused(empty_pipeline: Pipeline) -> None:
    url = make_database(empty_pipeline, "LATIN1")
    for command in (["consumer"], ["tickpipe", "migrate"]):
        process = empty_pipeline.processes.start(*command, DATABASE_URL=url)
        assert process.wait() == 2
        (words,) = process.last_log_line()
        assert "the encoding of the database is LATIN1" in words
        assert "createdb --encoding UTF8" in words


# Roles.


def test_role_without_rights_is_refused_with_advice(new_role: Callable[[], str], empty_pipeline: Pipeline) -> None:
    pipeline, role = empty_pipeline, new_role()
    name = pipeline.database.query("SELECT current_database()")[0][0]
    url = pipeline.servers.database_url(name, user=role)
    for command in (["consumer"], ["tickpipe", "migrate"]):
        process = pipeline.processes.start(*command, DATABASE_URL=url)
        assert process.wait() == 2
        (words,) = process.last_log_line()
        assert words.startswith(f"{command[0]}: the database role lacks the right")
        assert "to apply the schema (permission denied" in words
        assert "run `tickpipe migrate` once with another role in DATABASE_URL" in words


def test_write_only_role_is_enough_for_an_existing_schema(
    new_role: Callable[[], str], fresh_pipeline: Pipeline
) -> None:
    pipeline, role = fresh_pipeline, new_role()
    pipeline.database.query(f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO {role}")
    name = pipeline.database.query("SELECT current_database()")[0][0]
    events = make_events(20)
    good, bad = list(ticks(events, SESSION)), next(ticks(make_events(1), SESSION + 1))
    pipeline.append([*good, bad._replace(price="dear")])
    consumer = pipeline.consumer("--drain", DATABASE_URL=pipeline.servers.database_url(name, user=role))
    assert consumer.wait() == 0
    pipeline.assert_stored_exactly(events, session=SESSION)
    assert pipeline.database.count("dead_letters") == 1


# Constraints.


@pytest.mark.parametrize(
    "values",
    [
        {column: value}
        for column in ("price", "day_volume", "bid", "ask")
        for value in (float("nan"), float("inf"), float("-inf"))
    ]
    + [
        {"time": "1969-12-31 23:59:59.999999+00"},
        {"time": "2100-01-01 00:00:00+00"},
        {"time": "57743-01-01 00:00:00+00"},  # milliseconds instead of seconds
        {"time": "infinity"},
        {"time": "-infinity"},
        {"symbol": ""},
        {"symbol": "€" * 65},
        {"exchange": "x" * 65},
        {"price": None},
        {"symbol": None},
        {"time": None},
        {"received_at": None},
        {"session": None},
        {"seq": None},
    ],
    ids=str,
)
def test_constraints_refuse_invalid_rows(database: Database, values: dict[str, object]) -> None:
    with pytest.raises(psycopg2.IntegrityError):
        insert(database, **values)
    assert database.count() == 0


def test_constraints_accept_unusual_valid_rows(database: Database) -> None:
    unusual: list[dict[str, object]] = [
        {"price": -37.63},  # oil, April 2020
        {"price": 0},
        {"day_volume": 0.5, "bid": -1, "ask": 0},
        {"time": "1970-01-01 00:00:00+00"},
        {"time": "2099-12-31 23:59:59.999999+00"},
        {"symbol": "€" * 64, "exchange": "€" * 64},
    ]
    for seq, values in enumerate(unusual):
        insert(database, seq=seq, **values)
    assert database.count() == len(unusual)


def test_tick_is_identified_by_session_and_seq(database: Database) -> None:
    insert(database)
    insert(database, seq=2)
    insert(database, session=SESSION + 1)
    with pytest.raises(psycopg2.errors.UniqueViolation):
        insert(database, price=2.0)
    assert database.count() == 3


# Candles.


def test_candles_match_a_manual_computation(database: Database) -> None:
    rng = random.Random(3)
    start = datetime(2025, 10, 9, 8, 58, 30, tzinfo=UTC)
    rows = []
    for seq in range(1500):
        time = start + timedelta(seconds=rng.randrange(600))  # several per second, in any order
        received = start + timedelta(microseconds=rng.randrange(10**9))
        rows.append((rng.choice(["A", "B"]), time, rng.uniform(-5, 5), received, seq))
        insert(database, symbol=rows[-1][0], time=time, price=rows[-1][2], received_at=received, seq=seq)

    expected = []
    for symbol, minute in sorted({(row[0], row[1].replace(second=0)) for row in rows}):
        inside = sorted(
            (row for row in rows if row[0] == symbol and minute <= row[1] < minute + timedelta(minutes=1)),
            key=lambda row: row[3],
        )
        prices = [row[2] for row in inside]
        expected.append((symbol, minute, prices[0], max(prices), min(prices), prices[-1], len(prices)))
    assert len(expected) == 22
    columns = "symbol, bucket, open, high, low, close, ticks"
    assert database.query(f"SELECT {columns} FROM candles_1m ORDER BY symbol, bucket") == expected

    minutes = start.replace(second=0) + timedelta(minutes=2), start.replace(second=0) + timedelta(minutes=4)
    found = database.query(f"SELECT {columns} FROM candles('1 minute', %s, %s) ORDER BY symbol, bucket", *minutes)
    assert found == [candle for candle in expected if minutes[0] <= candle[1] < minutes[1]]
