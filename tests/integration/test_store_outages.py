"""Errors while a batch is stored: outages store nothing; configuration errors stop the consumer."""

from __future__ import annotations

import pytest

from common.database.client import DatabaseClient
from common.errors import ConfigurationError, DatabaseOutageError, StreamOutageError
from common.settings import Secret
from common.threads import in_thread
from consumer.tables import PRICES
from consumer.writer import Stored, Writer
from tests.support.batches import entry, letters, make_batch, raw_entry, refused, seqs
from tests.support.pipeline import Database
from tests.support.waiting import PATIENCE, wait_for


@pytest.mark.parametrize("bisect", [False, True])
@pytest.mark.parametrize(
    "sqlstate",
    ["08006", "25006", "40P01", "40001", "42501", "53100", "53200", "55P03", "57014", "57P01", "58030"],
)
def test_outages_are_recognised_by_error_class(
    database: Database, store: DatabaseClient, sqlstate: str, bisect: bool
) -> None:
    undecodable = raw_entry(12, {b"what": b"is this?"})
    entries = [*make_batch(10), entry(11, symbol="BAD"), undecodable]
    with refused(database, "BAD", sqlstate), pytest.raises(DatabaseOutageError, match="refused"):
        Writer(store).insert_batch(PRICES, "prices", entries, bisect=bisect)
    assert database.count() == database.count("dead_letters") == 0
    assert Writer(store).insert_batch(PRICES, "prices", entries, bisect=bisect) == Stored(11, 0, 1)
    assert letters(database).keys() == {undecodable.id}


@pytest.mark.parametrize("sqlstate", ["54000", "P0001", "XX000"])
def test_ambiguous_error_is_an_outage_until_bisection(database: Database, store: DatabaseClient, sqlstate: str) -> None:
    entries = [*make_batch(10), entry(11, symbol="BAD")]
    with refused(database, "BAD", sqlstate):
        with pytest.raises(DatabaseOutageError, match="refused"):
            Writer(store).insert_batch(PRICES, "prices", entries)
        assert database.count() == database.count("dead_letters") == 0
        assert Writer(store).insert_batch(PRICES, "prices", entries, bisect=True) == Stored(10, 0, 1)
    assert letters(database).keys() == {entries[10].id}


def test_read_only_database_is_an_outage(fresh_database: Database) -> None:
    store = DatabaseClient(Secret(fresh_database.url))
    name = fresh_database.query("SELECT current_database()")[0][0]
    fresh_database.query(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(DatabaseOutageError, match="read-only"):
        Writer(store).insert_batch(PRICES, "prices", [*make_batch(10), entry(11, price="dear")])
    assert fresh_database.count() == fresh_database.count("dead_letters") == 0
    fresh_database.query("SET default_transaction_read_only = off")
    fresh_database.query(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert Writer(store).insert_batch(PRICES, "prices", make_batch(10)) == Stored(10, 0, 0)
    store.close()


def test_statement_timeout_is_an_outage(fresh_database: Database) -> None:
    store = DatabaseClient(Secret(fresh_database.url))
    name = fresh_database.query("SELECT current_database()")[0][0]
    fresh_database.query(f"ALTER DATABASE {name} SET statement_timeout = '500ms'")
    with fresh_database.locked(), pytest.raises(DatabaseOutageError, match="statement timeout"):
        Writer(store).insert_batch(PRICES, "prices", make_batch(10))
    assert Writer(store).insert_batch(PRICES, "prices", make_batch(10)) == Stored(10, 0, 0)
    store.close()


def test_killed_connection_is_an_outage_and_the_next_attempt_reconnects(
    database: Database, store: DatabaseClient
) -> None:
    assert store.ping()
    database.query(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with pytest.raises(DatabaseOutageError):
        Writer(store).insert_batch(PRICES, "prices", make_batch(10))
    assert Writer(store).insert_batch(PRICES, "prices", make_batch(10)) == Stored(10, 0, 0)


def test_connection_killed_within_a_batch_stores_nothing(database: Database, store: DatabaseClient) -> None:
    with database.locked():
        inserting = in_thread(Writer(store).insert_batch, PRICES, "prices", make_batch(10))
        (backend,) = wait_for(database.waiting)
        database.query("SELECT pg_terminate_backend(%s)", backend)
        assert isinstance(inserting.exception(timeout=PATIENCE), DatabaseOutageError)
    assert database.count() == 0
    assert Writer(store).insert_batch(PRICES, "prices", make_batch(10)) == Stored(10, 0, 0)


TERMINATE = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


TERMINATED = "terminating connection due to administrator command"


@pytest.mark.parametrize("idle", [True, False])
def test_outage_quotes_the_first_server_message(database: Database, store: DatabaseClient, idle: bool) -> None:
    def lose_the_connection() -> None:
        with store.transaction() as connection, connection.cursor() as cursor:
            database.query(TERMINATE)
            cursor.execute("SELECT 1")

    if idle:
        assert store.ping()
        database.query(TERMINATE)
        with pytest.raises(DatabaseOutageError, match=TERMINATED):
            Writer(store).insert_batch(PRICES, "prices", make_batch(1))
    else:
        with pytest.raises(DatabaseOutageError, match=TERMINATED):
            lose_the_connection()
    assert Writer(store).insert_batch(PRICES, "prices", make_batch(1)) == Stored(1, 0, 0)


def test_outage_explains_why_the_connection_ended(store: DatabaseClient) -> None:
    """Loads a setting as CREATE EXTENSION timescaledb does without preloading."""

    def end_it() -> None:
        with store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(DatabaseOutageError, match=TERMINATED):
        end_it()
    assert store.ping()


def test_own_error_is_not_hidden_by_a_lost_connection(database: Database, store: DatabaseClient) -> None:
    def fail() -> None:
        with store.transaction():
            database.query(TERMINATE)
            raise StreamOutageError("Redis: unavailable")

    with pytest.raises(StreamOutageError, match="Redis: unavailable"):
        fail()
    assert store.ping()


def test_setting_of_an_extension_loaded_later_applies_to_the_next_transaction(store: DatabaseClient) -> None:
    """The connection that creates the TimescaleDB extension has its settings only afterwards."""
    name = "timescaledb.max_tuples_decompressed_per_dml_transaction"
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT set_config(%s, '100000', false)", (name,))
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s)", (name,))
        assert cursor.fetchone() == ("0",)


def test_concurrent_inserts_of_one_batch_store_it_once(database: Database, store: DatabaseClient) -> None:
    other = DatabaseClient(Secret(database.url))
    with database.locked():
        writing = [in_thread(Writer(each).insert_batch, PRICES, "prices", make_batch(500)) for each in (store, other)]
        wait_for(lambda: len(database.waiting()) == 2)
    for each in writing:
        each.result(timeout=PATIENCE)
    other.close()
    assert seqs(database) == list(range(1, 501))


@pytest.mark.parametrize("bisect", [False, True])
def test_missing_schema_is_a_configuration_error(empty_database: Database, bisect: bool) -> None:
    store = DatabaseClient(Secret(empty_database.url))
    with pytest.raises(ConfigurationError, match="run `tickpipe migrate`"):
        Writer(store).insert_batch(PRICES, "prices", make_batch(10), bisect=bisect)
    store.close()


def test_commit_is_synchronous_regardless_of_role_settings(fresh_database: Database) -> None:
    store = DatabaseClient(Secret(fresh_database.url))
    name = fresh_database.query("SELECT current_database()")[0][0]
    fresh_database.query(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('synchronous_commit'), current_setting('TimeZone')")
        assert cursor.fetchone() == ("on", "UTC")
    store.close()
