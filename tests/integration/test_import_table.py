"""`tickpipe import --table` takes over the rows of TimescaleDB's tutorial: each once, and all of them accounted for."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from common.errors import ConfigurationError
from tests.support.candles import Traded, assert_candles, compress, refresh, store_of
from tests.support.files import refused, run
from tests.support.pipeline import Database
from tests.support.processes import Processes, Running
from tests.support.sessions import StoredSession
from tests.support.tutorial import expected_ticks, follow_tutorial, make_rows
from tests.support.waiting import wait_for
from tickpipe.files import importing
from tickpipe.files.importing import STORED_BEFORE, Importer
from tickpipe.files.table import find_table
from tickpipe.inspect.verdict import Verdict
from tickpipe.inspect.verify import verify

TUTORIAL = "prices_tutorial"


@pytest.fixture(params=["plain", "timescale"])
def tutorial(request: pytest.FixtureRequest) -> Database:
    """A database without the schema, on PostgreSQL and on TimescaleDB."""
    found: Database = request.getfixturevalue("empty_database" if request.param == "plain" else "timescale")
    return found


def verdicts(database: Database, folder: Path) -> list[Verdict]:
    with closing(store_of(database)) as store:
        return verify(store, [], [], folder, everything=True, recheck_after=0)


def test_the_commands_that_migrate_prints_take_over_the_tutorial(
    tutorial: Database, processes: Processes, tmp_path: Path
) -> None:
    rows, invalid = make_rows(1, 6_000)
    follow_tutorial(tutorial, rows)
    before = tutorial.query("SELECT count(*), sum(hashtext(p::text)::bigint) FROM prices_real_time AS p")
    _, psql, migrate, take_over = run(processes, tutorial, "migrate", status=2)
    assert tutorial.query("SELECT count(*), sum(hashtext(p::text)::bigint) FROM prices_real_time AS p") == before
    assert tutorial.query("SELECT to_regclass('tickpipe_migrations'), to_regclass('feed_events')") == [(None, None)]

    (statement,) = re.findall(r'psql "\$DATABASE_URL" -c "(.*)"', psql)
    tutorial.query(statement)
    run(processes, tutorial, *migrate.split()[1:])
    expected = expected_ticks(rows)
    lines = run(processes, tutorial, *take_over.split()[1:])
    assert lines[0] == (
        f"{TUTORIAL}: {len(rows):,} rows read, {len(expected):,} stored, {len(rows) - len(expected)} not stored"
    )
    assert refused(lines) == invalid
    assert len(rows) == len(expected) + sum(invalid.values())
    columns = ", ".join(Traded._fields)
    assert tutorial.query(f"SELECT {columns} FROM prices_real_time ORDER BY seq") == expected
    assert_candles(tutorial, expected)
    refresh(tutorial)
    assert_candles(tutorial, expected)

    (verdict,) = verdicts(tutorial, tmp_path)
    assert (verdict.state, verdict.stored, verdict.expected) == ("complete", len(expected), len(expected))
    assert tutorial.query("SELECT DISTINCT source FROM prices_real_time") == [("import",)]
    assert tutorial.query("SELECT * FROM feed_gaps") == []

    again = run(processes, tutorial, *take_over.split()[1:])
    assert again[0] == f"{TUTORIAL}: {len(rows):,} rows read, 0 stored, {len(rows):,} not stored"
    assert refused(again) == {**invalid, STORED_BEFORE: len(expected)}
    assert tutorial.count() == len(expected)
    assert len(verdicts(tutorial, tmp_path)) == 1, "nothing new, no session"


def test_rows_that_the_tutorial_stores_later_are_taken_by_the_next_run(
    fresh_database: Database, processes: Processes, tmp_path: Path
) -> None:
    rows, _ = make_rows(2, 3000)
    follow_tutorial(fresh_database, rows[::2], table=TUTORIAL)
    run(processes, fresh_database, "import", "--table", TUTORIAL)
    fresh_database.query(f"TRUNCATE {TUTORIAL}")
    fresh_database.query(f"DROP TABLE {TUTORIAL}")
    follow_tutorial(fresh_database, rows, table=TUTORIAL)
    lines = run(processes, fresh_database, "import", "--table", TUTORIAL)
    expected = expected_ticks(rows)
    assert fresh_database.count() == len(expected)
    assert refused(lines)[STORED_BEFORE] == len(expected_ticks(rows[::2]))
    first, second = verdicts(fresh_database, tmp_path)
    assert (first.state, second.state) == ("complete", "complete")
    assert first.stored + second.stored == len(expected)


def test_a_compressed_hypertable_is_taken_over(hypertable: Database, processes: Processes) -> None:
    rows, _ = make_rows(3, 2000)
    follow_tutorial(hypertable, rows, table=TUTORIAL)
    hypertable.query(f"ALTER TABLE {TUTORIAL} SET (timescaledb.compress, timescaledb.compress_segmentby = 'symbol')")
    for (chunk,) in hypertable.query(f"SELECT show_chunks('{TUTORIAL}')::text"):
        hypertable.query("SELECT compress_chunk(%s)", chunk)
    run(processes, hypertable, "import", "--table", TUTORIAL)
    expected = expected_ticks(rows)
    found = hypertable.query("SELECT symbol, time, price, day_volume FROM prices_real_time")
    assert sorted(found, key=str) == sorted(((t.symbol, t.time, t.price, t.day_volume) for t in expected), key=str)
    compress(hypertable)
    lines = run(processes, hypertable, "import", "--table", TUTORIAL)
    assert refused(lines)[STORED_BEFORE] == len(expected)
    assert hypertable.count() == len(expected)


def test_an_import_killed_at_any_moment_continues_without_doubles(
    fresh_database: Database, processes: Processes, tmp_path: Path
) -> None:
    rows, _ = make_rows(4, 40_000)
    follow_tutorial(fresh_database, rows, table=TUTORIAL)
    expected = expected_ticks(rows)
    for _ in range(3):
        stored = fresh_database.count()
        process: Running = processes.start("tickpipe", "import", "--table", TUTORIAL, DATABASE_URL=fresh_database.url)
        wait_for(
            lambda before=stored, running=process: fresh_database.count() > before or running.status is not None,  # type: ignore[misc]
            message="a batch is stored",
        )
        process.kill()
    run(processes, fresh_database, "import", "--table", TUTORIAL)
    assert fresh_database.count() == len(expected)
    doubles = (
        "SELECT count(*) FROM (SELECT DISTINCT symbol, time, price, day_volume FROM prices_real_time) AS distinct_"
    )
    assert fresh_database.query(doubles) == [(len(expected),)]
    found = verdicts(fresh_database, tmp_path)
    assert {verdict.state for verdict in found} == {"complete"}
    assert sum(verdict.stored for verdict in found) == len(expected)


def test_imports_at_the_same_time_store_each_row_once(
    fresh_database: Database, processes: Processes, tmp_path: Path
) -> None:
    rows, _ = make_rows(7, 20_000)
    follow_tutorial(fresh_database, rows, table=TUTORIAL)
    arguments = ("tickpipe", "import", "--table", TUTORIAL)
    both = [processes.start(*arguments, DATABASE_URL=fresh_database.url) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    expected = expected_ticks(rows)
    assert fresh_database.count() == len(expected)
    before = [refused(process.last_log_line()).get(STORED_BEFORE, 0) for process in both]
    assert sum(before) == len(expected)
    found = verdicts(fresh_database, tmp_path)
    assert {verdict.state for verdict in found} == {"complete"}
    assert sum(verdict.stored for verdict in found) == len(expected)


def test_rows_come_from_another_database(
    fresh_database: Database, empty_database: Database, processes: Processes
) -> None:
    rows, _ = make_rows(5, 1000)
    follow_tutorial(empty_database, rows)
    named = run(processes, fresh_database, "import", "--table", "prices_real_time", "--from", empty_database.url)
    assert f" {len(expected_ticks(rows)):,} stored" in named[0]
    by_variable = run(
        processes,
        fresh_database,
        "import",
        "--table",
        "public.prices_real_time",
        IMPORT_DATABASE_URL=empty_database.url,
    )
    assert refused(by_variable)[STORED_BEFORE] == len(expected_ticks(rows))
    secret = "postgresql://me:s3cr3t@127.0.0.1:1/x"
    (line,) = run(processes, fresh_database, "import", "--table", "x", "--from", secret, status=2)
    assert "s3cr3t" not in line
    assert "set IMPORT_DATABASE_URL instead" in line


def test_columns_may_have_other_names(fresh_database: Database, processes: Processes) -> None:
    """A time without a zone is UTC, and a numeric price keeps its value."""
    fresh_database.query('CREATE TABLE "My Ticks" (ts timestamp, "Last" numeric, v bigint)')
    fresh_database.query(
        """INSERT INTO "My Ticks" VALUES ('2026-03-02 10:00:00.25', 0.1, 7), ('infinity', 1, 1), (NULL, 1, 1)"""
    )
    options = ("--columns", "time=ts,price=Last,day_volume=v", "--symbol", "X/Y")
    lines = run(processes, fresh_database, "import", "--table", "My Ticks", *options)
    assert refused(lines) == {"time is not between 1970 and 2100": 1, "time is missing": 1}
    found = "SELECT symbol, extract(epoch FROM time)::float8, price, day_volume FROM prices_real_time"
    assert fresh_database.query(found) == [("X/Y", 1772445600.25, 0.1, 7.0)]


def test_rows_older_than_retention_are_not_stored(fresh_database: Database, processes: Processes) -> None:
    """Their candles are final, and the next run of retention would drop them."""
    rows, _ = make_rows(6, 3000)
    follow_tutorial(fresh_database, rows, table=TUTORIAL)
    fresh_database.query("CALL expire_ticks('2026-03-03 00:00:00+00')")
    lines = run(processes, fresh_database, "import", "--table", TUTORIAL)
    kept = [tick for tick in expected_ticks(rows) if tick.time.day >= 3]
    assert 0 < len(kept) < len(expected_ticks(rows))
    assert fresh_database.count() == len(kept)
    assert refused(lines)["older than the ticks that retention has dropped, so its candle is final"] > 0


def test_a_table_that_cannot_be_taken_over_is_refused(fresh_database: Database) -> None:
    fresh_database.query("CREATE TABLE ticks (time timestamptz, symbol text, price float8)")
    fresh_database.query("CREATE TABLE half (time timestamptz, symbol text)")
    with closing(store_of(fresh_database)) as store:
        with pytest.raises(ConfigurationError, match=r"no such table\. Tables with time, symbol and price: ticks$"):
            find_table(store, "tikcs", {})
        with pytest.raises(ConfigurationError, match=r"the table half has no column 'price'\. It has: time, symbol\. "):
            find_table(store, "half", {})
        with pytest.raises(ConfigurationError, match="is a table of tickpipe"):
            find_table(store, "prices_real_time", {})


def test_the_time_of_unsorted_rows_goes_back_a_limited_number_of_times(
    fresh_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with one symbol after the other has a session for each."""
    monkeypatch.setattr(importing, "MAX_SESSIONS", 20)

    def row(seconds: int, symbol: str) -> tuple[str, ...]:
        return (str(seconds * 1_000_000), symbol, "1.5", *[""] * 7)

    with closing(store_of(fresh_database)) as store:
        importer = Importer(store, "file", clock=iter(range(1_772_000_000_000_000, 1_773_000_000_000_000)).__next__)
        importer.begin()
        importer.add(row(second, symbol) for symbol in ("A", "B", "C") for second in range(100, 110))
        importer.end()
        assert (importer.result.stored, len(importer.result.sessions)) == (30, 3)
        assert {verdict.state for verdict in verdicts(fresh_database, tmp_path)} == {"complete"}
        importer.add(row(second, "A") for second in range(100, 110))
        importer.end()
        assert importer.result.refused == {STORED_BEFORE: 10}
        with pytest.raises(ConfigurationError, match="goes back more than 20 times: sort the rows by time"):
            importer.add(row(second, "D") for second in range(25, 0, -1))


def test_an_import_is_not_a_growth_of_the_last_day(
    fresh_database: Database, processes: Processes, tmp_path: Path
) -> None:
    rows, _ = make_rows(8, 3000)
    follow_tutorial(fresh_database, rows, table=TUTORIAL)
    run(processes, fresh_database, "import", "--table", TUTORIAL)
    expected = expected_ticks(rows)
    assert fresh_database.query("SELECT rows, added FROM ticks_growth") == [(len(expected), 0)]
    (verdict,) = verdicts(fresh_database, tmp_path)
    assert verdict.session // 1_000_000 == expected[0].time.timestamp()


def test_an_import_hides_no_gap(fresh_database: Database, processes: Processes) -> None:
    """Its ticks are from a day on which no producer ran, between two days with sessions."""
    rows, _ = make_rows(10, 500)
    follow_tutorial(fresh_database, rows, table=TUTORIAL)
    day = rows[0][0]
    assert day
    with closing(store_of(fresh_database)) as store:
        for days in (-2, 2):
            session = StoredSession(store, (day + timedelta(days=days)).timestamp())
            session.emit("started", 0, feed="twelvedata")
            session.emit("subscribed", 1, symbols=["AAPL"])
            session.checkpoint("stopped", 2, 0)
    gaps = "SELECT * FROM feed_gaps_between(%s) WHERE until IS NOT NULL"
    before = fresh_database.query(gaps, day + timedelta(days=1))
    assert len(before) == 1
    run(processes, fresh_database, "import", "--table", TUTORIAL)
    assert fresh_database.query(gaps, day + timedelta(days=1)) == before


def test_ticks_of_an_import_are_known_without_its_feed_events(fresh_database: Database, processes: Processes) -> None:
    """They may come from an export of another database."""
    rows, _ = make_rows(9, 3000)
    follow_tutorial(fresh_database, rows, table=TUTORIAL)
    run(processes, fresh_database, "import", "--table", TUTORIAL)
    fresh_database.query("TRUNCATE feed_events")
    lines = run(processes, fresh_database, "import", "--table", TUTORIAL)
    assert refused(lines)[STORED_BEFORE] == fresh_database.count() == len(expected_ticks(rows))
