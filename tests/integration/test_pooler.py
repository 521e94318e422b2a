"""A real pgbouncer: settings and locks apply although each transaction may use another server connection."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from common.database import migrations
from common.database.client import DatabaseClient
from common.database.migrations import apply, read_migrations
from common.errors import ConfigurationError
from common.settings import Secret
from common.threads import in_thread
from consumer.tables import PRICES
from consumer.writer import Stored, Writer
from tests.integration.conftest import skip_or_fail
from tests.support.capture import make_events, ticks
from tests.support.files import checksum, insert_difficult_ticks, run
from tests.support.folders import temporary_folder
from tests.support.pgbouncer import POOL_SIZE, find_pgbouncer, pgbouncer
from tests.support.pipeline import Database, Pipeline
from tests.support.processes import Processes
from tests.support.sessions import StoredSession
from tests.support.timescaledb import needs_two_backends
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.inspect.database import DatabaseReader

SESSION = 1_760_000_000_000_000
PLAIN = [migration.name for migration in read_migrations() if not migration.timescaledb]


@pytest.fixture
def folder() -> Iterator[Path]:
    try:
        find_pgbouncer()
    except ConfigurationError as error:
        skip_or_fail(error, "pgbouncer")
    with temporary_folder() as folder:
        yield folder


@pytest.fixture
def pooled_url(fresh_database: Database, folder: Path) -> Iterator[str]:
    """The URL of `fresh_database` behind a pooler in transaction mode."""
    with pgbouncer(fresh_database.url, folder) as url:
        yield url


@pytest.fixture
def pooled_empty_url(empty_database: Database, folder: Path) -> Iterator[str]:
    """The URL of `empty_database` behind a pooler in transaction mode."""
    with pgbouncer(empty_database.url, folder) as url:
        yield url


def configure(database: Database, **settings: str) -> None:
    """Set defaults for all later sessions in the database."""
    ((name,),) = database.query("SELECT current_database()")
    for setting, value in settings.items():
        database.query(f"ALTER DATABASE {name} SET {setting} = '{value}'")


def test_each_transaction_has_its_settings(fresh_database: Database, folder: Path) -> None:
    configure(
        fresh_database,
        synchronous_commit="off", TimeZone="Asia/Tokyo", idle_in_transaction_session_timeout="0",
        client_min_messages="error", default_transaction_isolation="serializable",
    )  # fmt: skip
    names = (
        "synchronous_commit", "TimeZone", "idle_in_transaction_session_timeout", "client_min_messages",
        "transaction_isolation",
    )  # fmt: skip
    seen = set()
    with pgbouncer(fresh_database.url, folder) as url, closing(DatabaseClient(Secret(url))) as store:
        for _ in range(2 * POOL_SIZE):
            with store.transaction() as connection, connection.cursor() as cursor:
                cursor.execute("SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", (list(names),))
                settings = dict(cursor.fetchall())
                cursor.execute("SELECT pg_backend_pid()")
                seen.add(cursor.fetchone())
            assert [settings[name] for name in names] == ["on", "UTC", "20000", "warning", "read committed"]
    assert len(seen) > 1, "the pooler changes the server connection"


def test_settings_do_not_leak_to_other_clients_of_the_pooler(fresh_database: Database, folder: Path) -> None:
    configure(fresh_database, synchronous_commit="remote_write")
    query = "SELECT current_setting('synchronous_commit'), current_setting('statement_timeout')"
    with (
        pgbouncer(fresh_database.url, folder) as url,
        closing(DatabaseClient(Secret(url))) as store,
        closing(DatabaseReader.read_only(Secret(url))) as reader,
        closing(Database(url)) as other,
    ):
        for _ in range(2 * POOL_SIZE):
            assert store.ping()
            assert reader.rows("SELECT 1") == [(1,)]
        assert {other.query(query)[0] for _ in range(2 * POOL_SIZE)} == {("remote_write", "0")}


def test_dashboard_queries_are_read_only_with_a_timeout(pooled_url: str) -> None:
    query = (
        "SELECT current_setting('transaction_read_only'), current_setting('statement_timeout'), "
        "current_setting('jit'), current_setting('max_parallel_workers_per_gather'), current_setting('TimeZone')"
    )
    with closing(DatabaseReader.read_only(Secret(pooled_url))) as reader:
        assert {reader.rows(query)[0] for _ in range(2 * POOL_SIZE)} == {("on", "10s", "off", "0", "UTC")}


def test_successive_migrations_do_not_wait_for_a_leftover_lock(pooled_empty_url: str, empty_database: Database) -> None:
    def migrate_twelve_times() -> None:
        for number in range(12):
            with closing(DatabaseClient(Secret(pooled_empty_url))) as store:
                assert apply(store) == ([] if number else PLAIN)

    in_thread(migrate_twelve_times).result(timeout=PATIENCE)
    assert empty_database.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


def test_one_of_many_pooled_migrations_applies_everything(pooled_empty_url: str, empty_database: Database) -> None:
    """There are more migrations than pool connections."""
    stores = [DatabaseClient(Secret(pooled_empty_url)) for _ in range(3 * POOL_SIZE)]
    with ThreadPoolExecutor(len(stores)) as at_once:
        done = sorted(at_once.map(apply, stores, timeout=2 * PATIENCE), key=len)
    assert done == [[]] * (len(stores) - 1) + [PLAIN]
    for store in stores:
        store.close()
    assert empty_database.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


def test_direct_and_pooled_migrations_exclude_each_other(
    pooled_empty_url: str, empty_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with (
        closing(DatabaseClient(Secret(pooled_empty_url))) as pooled,
        closing(DatabaseClient(Secret(empty_database.url))) as one,
    ):
        with one.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (migrations._LOCK,))
            applying = in_thread(apply, pooled)
            wait_for(lambda: "another process is applying it" in caplog.text)
            assert not applying.done()
        applying.result(timeout=PATIENCE)
        assert apply(one) == []


def test_batch_is_stored_once_through_a_pooler(pooled_url: str, fresh_database: Database) -> None:
    with closing(DatabaseClient(Secret(pooled_url))) as store:
        session = StoredSession(store, 1_760_000_000)
        session.store(range(1, 1001))
        session.store(range(1, 1501))
        session.store([2000], price="dear")
    assert fresh_database.count() == 1500
    assert fresh_database.count("dead_letters") == 1


def test_pipeline_through_a_pooler_stores_everything(fresh_pipeline: Pipeline, folder: Path) -> None:
    pipeline = fresh_pipeline
    events = make_events(300)
    good = list(ticks(events, SESSION))
    pipeline.append([*good, good[0]._replace(seq="301", price="dear")])
    with pgbouncer(pipeline.database.url, folder) as url:
        assert pipeline.consumer("--drain", DATABASE_URL=url).wait() == 0
        for command in (["verify"], ["status"], ["migrate"], ["dead-letters", "list"], ["retention"]):
            running = pipeline.processes.start("tickpipe", *command, DATABASE_URL=url)
            assert running.wait() == 0, running.said()
        doctor = pipeline.processes.start("tickpipe", "doctor", DATABASE_URL=url)
        doctor.wait()
        assert "database: connected through a pooler" in doctor.said()
    pipeline.assert_stored_exactly(events)
    direct = pipeline.processes.start("tickpipe", "doctor")
    direct.wait()
    assert "database: no pooler" in direct.said()


def test_statement_mode_is_refused_with_advice(fresh_database: Database, folder: Path) -> None:
    with (
        pgbouncer(fresh_database.url, folder, mode="statement") as url,
        closing(DatabaseClient(Secret(url))) as store,
        pytest.raises(ConfigurationError, match="pool_mode = transaction"),
    ):
        Writer(store).insert_batch(PRICES, "prices", [])


@pytest.mark.parametrize("change", ["?options=-csearch_path%3Dmine", "/nosuch"])
def test_url_refused_by_the_pooler_is_a_configuration_error(pooled_url: str, change: str) -> None:
    url = f"{pooled_url}{change}" if change[0] == "?" else pooled_url.rpartition("/")[0] + change
    with closing(DatabaseClient(Secret(url))) as store, pytest.raises(ConfigurationError, match="refuses DATABASE_URL"):
        store.ping()


def test_session_mode_works(empty_database: Database, folder: Path) -> None:
    with pgbouncer(empty_database.url, folder, mode="session") as url, closing(DatabaseClient(Secret(url))) as store:
        assert in_thread(apply, store).exception(timeout=PATIENCE) is None
        assert Writer(store).insert_batch(PRICES, "prices", []) == Stored(0, 0, 0)


@needs_two_backends
def test_timescaledb_works_through_a_pooler(timescale: Database, folder: Path) -> None:
    with pgbouncer(timescale.url, folder) as url:
        stores = [DatabaseClient(Secret(url)) for _ in range(2 * POOL_SIZE)]
        with ThreadPoolExecutor(len(stores)) as at_once:
            done = sorted(at_once.map(apply, stores, timeout=2 * PATIENCE), key=len)
        assert done == [[]] * (len(stores) - 1) + [[migration.name for migration in read_migrations()]]
        session = StoredSession(stores[0], 1_760_000_000)
        session.store(range(1, 1001))
        assert timescale.query("SELECT count(compress_chunk(c)) FROM show_chunks('prices_real_time') AS c") == [(1,)]
        session.store(range(1, 1001))
        for store in stores:
            store.close()
    assert timescale.count() == 1000


def test_ticks_are_exported_through_the_pooler_and_a_table_is_not_read(
    fresh_database: Database, pooled_url: str, processes: Processes, tmp_path: Path
) -> None:
    """The rows of a table are read by one connection without a transaction, which a pooler would share."""
    insert_difficult_ticks(fresh_database, 1, 200)
    before = checksum(fresh_database)
    behind = Database(pooled_url)
    run(processes, behind, "export", "--to", str(tmp_path / "ticks"))
    fresh_database.query("TRUNCATE prices_real_time")
    run(processes, behind, "import", str(tmp_path / "ticks"))
    assert checksum(fresh_database) == before
    fresh_database.query("CREATE TABLE ticks AS SELECT now() AS time, 'A'::text AS symbol, 1.5 AS price")
    (line,) = run(processes, behind, "import", "--table", "ticks", status=2)
    assert "cannot be read through a pooler: name the server itself with --from" in line
    lines = run(processes, behind, "import", "--table", "ticks", "--from", fresh_database.url)
    assert lines[0] == "ticks: 1 rows read, 1 stored, 0 not stored"
