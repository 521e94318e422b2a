"""A commit whose wait for the standby was cancelled is not acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress

import psycopg2
import pytest

from common.database.client import DatabaseClient
from common.errors import DatabaseOutageError
from common.settings import Secret
from common.threads import in_thread
from consumer.tables import PRICES
from consumer.writer import Stored, Writer
from tests.support.capture import make_events, ticks
from tests.support.pipeline import Database, Pipeline
from tests.support.sessions import StoredSession, entry
from tests.support.waiting import PATIENCE, wait_for

SESSION = 1_760_000_000_000_000


@contextmanager
def absent_standby(database: Database) -> Iterator[None]:
    """Within this context each commit waits for a standby that does not exist."""
    setting = "SELECT setting FROM pg_settings WHERE name = 'synchronous_standby_names'"
    database.query("SET synchronous_commit = local")
    try:
        database.query("ALTER SYSTEM SET synchronous_standby_names = 'absent'")
        database.query("SELECT pg_reload_conf()")
        wait_for(lambda: database.query(setting) == [("absent",)])
        yield
    finally:
        database.query("ALTER SYSTEM RESET synchronous_standby_names")
        database.query("SELECT pg_reload_conf()")
        wait_for(lambda: database.query(setting) == [("",)])


def waiting_for_standby(database: Database) -> list[int]:
    """The pids of the backends that wait for the standby."""
    return [
        pid
        for (pid,) in database.query(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'SyncRep'"
        )
    ]


def insert(store: DatabaseClient, *, bad: bool = False) -> Future[None]:
    """Insert ten ticks of one session in a thread."""
    entries = [entry(StoredSession(store, SESSION / 1e6).tick(seq)._asdict()) for seq in range(1, 11)]
    if bad:
        entries.append(entry(StoredSession(store, SESSION / 1e6).tick(11, price="dear")._asdict()))
    return in_thread(Writer(store).insert_batch, PRICES, "prices", entries)


def cancel(database: Database, inserting: Future[None]) -> BaseException | None:
    """Cancel the wait for the standby and return the error of the insert."""
    (pid,) = wait_for(lambda: waiting_for_standby(database), message="the commit waits for the standby")
    assert not inserting.done()
    database.query("SELECT pg_cancel_backend(%s)", pid)
    return inserting.exception(timeout=PATIENCE)


@pytest.mark.parametrize("level", ["notice", "error"])  # at level error the server sends no warnings
def test_cancelled_wait_for_the_standby_is_an_outage(fresh_database: Database, level: str) -> None:
    ((name,),) = fresh_database.query("SELECT current_database()")
    fresh_database.query(f"ALTER DATABASE {name} SET client_min_messages = {level}")
    with closing(DatabaseClient(Secret(fresh_database.url))) as store:
        assert store.ping()
        with absent_standby(fresh_database):
            error = cancel(fresh_database, insert(store))
            assert isinstance(error, DatabaseOutageError)
            assert "canceling wait for synchronous replication" in str(error)
        assert fresh_database.count() == 10  # it is committed on the primary


@pytest.mark.parametrize("bad", [False, True])
def test_redelivered_batch_waits_for_the_standby(fresh_database: Database, bad: bool) -> None:
    """The rows exist, but the standby may lack them. A batch without new rows still has to wait."""
    with (
        closing(DatabaseClient(Secret(fresh_database.url))) as store,
        closing(DatabaseClient(Secret(fresh_database.url))) as other,
    ):
        assert store.ping()
        assert other.ping()
        with absent_standby(fresh_database):
            assert isinstance(cancel(fresh_database, insert(store, bad=bad)), DatabaseOutageError)
            assert isinstance(cancel(fresh_database, insert(store, bad=bad)), DatabaseOutageError)
            last = insert(other, bad=bad)
            wait_for(lambda: waiting_for_standby(fresh_database), message="another consumer waits, too")
            assert not last.done()
        last.result(timeout=PATIENCE)  # no wait, because the setting was removed
    assert fresh_database.count() == 10
    assert fresh_database.count("dead_letters") == int(bad)


def test_consumer_acks_only_after_a_commit_without_a_warning(fresh_pipeline: Pipeline) -> None:
    pipeline, database = fresh_pipeline, fresh_pipeline.database
    events = make_events(50)
    consumer = pipeline.consumer()
    consumer.wait_until_said("reads prices in the group timescale")
    with absent_standby(database):
        pipeline.append(list(ticks(events, SESSION)))
        for _ in range(2):
            (pid,) = wait_for(lambda: waiting_for_standby(database))
            database.query("SELECT pg_cancel_backend(%s)", pid)
            consumer.wait_until_said("committed with a warning")
        assert pipeline.prices.pending() == 50
    wait_for(pipeline.nothing_pending)
    assert consumer.stop() == 0
    pipeline.assert_stored_exactly(events)


def test_commit_of_an_aborted_transaction_is_an_outage(database: Database) -> None:
    """PostgreSQL answers COMMIT with ROLLBACK if an earlier statement failed."""

    def ignore_an_error(store: DatabaseClient) -> None:
        with store.transaction() as connection, connection.cursor() as cursor, suppress(psycopg2.DataError):
            cursor.execute("SELECT 1 / 0")

    with (
        closing(DatabaseClient(Secret(database.url))) as store,
        pytest.raises(DatabaseOutageError, match="with ROLLBACK"),
    ):
        ignore_an_error(store)


def test_read_only_transaction_does_not_wait_for_the_standby(fresh_database: Database) -> None:
    with closing(DatabaseClient(Secret(fresh_database.url))) as store, absent_standby(fresh_database):
        assert in_thread(Writer(store).insert_batch, PRICES, "prices", []).exception(timeout=PATIENCE) is None
        assert Writer(store).insert_batch(PRICES, "prices", []) == Stored(0, 0, 0)
