"""Every example of docs/querying.md runs on PostgreSQL and TimescaleDB and returns the rows computed in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.expected_rows import DAY, PROGRAMS, QUERIES, begin_of, ticks
from tests.support.market import NOW, SPRING
from tests.support.querying import PAGE, SECTIONS, Backend, at


@pytest.fixture(scope="module", params=["PostgreSQL", "TimescaleDB"])
def backend(request: pytest.FixtureRequest) -> Backend:
    timescaledb = request.param == "TimescaleDB"
    name = "timescale_of_the_module" if timescaledb else "database_of_the_module"
    return Backend(request.getfixturevalue(name), timescaledb)


sections_with_sql = pytest.mark.parametrize("heading", QUERIES)


def assert_shown(shown: str, printed: str) -> None:
    """Check that the output matches the page. A line with … matches one or more lines."""
    found = "".join(f"{line.rstrip()}\n" for line in printed.strip("\n").splitlines())
    pattern = "".join(r"(?:.*\n)+" if line == "…" else f"{re.escape(line)}\n" for line in shown.splitlines())
    assert re.fullmatch(pattern, found), f"the page shows\n\n{shown}\nand this is printed:\n\n{found}"


def test_every_example_of_the_page_is_checked() -> None:
    queries = {heading: sum(block.is_query for block in blocks) for heading, blocks in SECTIONS.items()}
    programs = {heading: sum(block.language == "python" for block in blocks) for heading, blocks in SECTIONS.items()}
    assert {heading: count for heading, count in queries.items() if count} == {
        heading: len(checks) for heading, checks in QUERIES.items()
    }
    assert {heading: count for heading, count in programs.items() if count} == {
        heading: len(checks) for heading, checks in PROGRAMS.items()
    }
    assert {block.language for blocks in SECTIONS.values() for block in blocks} == {"sql", "python"}


@sections_with_sql
def test_query_rows_match_a_manual_computation(heading: str, backend: Backend) -> None:
    with backend.having(SECTIONS[heading]) as blocks:
        for block, query in zip(blocks, QUERIES[heading], strict=True):
            query.check(backend.database.query(at(NOW, block.code)), NOW)


@sections_with_sql
def test_psql_prints_what_the_page_shows(heading: str, backend: Backend) -> None:
    blocks = [block for block in SECTIONS[heading] if block.language == "sql"]
    with backend.having([]):
        printed = backend.psql(*(at(NOW, block.code) for block in blocks))
    for block, result in zip(blocks, printed, strict=True):
        assert_shown(block.shown, result)


@sections_with_sql
def test_queries_read_little_more_than_they_return(heading: str, backend: Backend) -> None:
    with backend.having(SECTIONS[heading]) as blocks:
        for block, query in zip(blocks, QUERIES[heading], strict=True):
            sql = at(NOW, block.code)
            if query.reads_all and not backend.timescaledb:
                assert backend.reads(sql) > backend.rows / 10
                continue
            about = sum(len(ticks(symbol, NOW - query.back)) for symbol in query.symbols)
            assert backend.reads(sql) <= 6 * about + 50 < backend.rows
            plan = "\n".join(line for (line,) in backend.database.query(f"EXPLAIN {sql}"))
            assert not re.search(rf"Seq Scan on ({'|'.join(backend.tables)})\\b", plan), plan


@pytest.mark.parametrize("heading", ["The exchange's day", "The FX day"])
def test_days_are_correct_across_spring_daylight_saving(heading: str, backend: Backend) -> None:
    (block,) = SECTIONS[heading]
    (query,) = QUERIES[heading]
    query.check(backend.database.query(at(SPRING, block.code)), SPRING)


def test_fixed_24_hour_days_shift_after_daylight_saving(backend: Backend) -> None:
    """The statement of the page about date_bin and 24-hour days."""
    rows = backend.database.query(
        """
        SELECT to_char(date_bin('1 day', moment, origin) AT TIME ZONE 'America/New_York', 'HH24:MI'),
               to_char((origin + interval '240 hours') AT TIME ZONE 'America/New_York', 'HH24:MI')
        FROM (VALUES (timestamptz '2025-11-04 12:00:00+00', timestamptz '2025-10-30 17:00:00-04'),
                     ('2025-03-11 12:00:00+00', '2025-03-05 17:00:00-05')) AS change (moment, origin)
        """
    )
    assert rows == [("16:00", "16:00"), ("18:00", "18:00")]


def test_volume_follows_the_documented_rules(backend: Backend) -> None:
    steps = [
        ("10:00", "NASDAQ", 100),  # the first value
        ("10:01", "NASDAQ", 130),
        ("10:02", "NASDAQ", 120),  # a correction
        ("10:03", "NASDAQ", 125),
        ("10:04", "NASDAQ", 20),  # below half
        ("10:05", "XETRA", 1000),  # the first value of another counter
        ("10:06", "XETRA", 1010),
        ("10:06", "NASDAQ", 25),
        ("34:00", "NASDAQ", 24),  # a new day
        ("34:01", "NASDAQ", None),
    ]
    expected = [0, 30, 0, 5, 20, 0, 15, 24, None]
    try:
        backend.database.query(
            """
            INSERT INTO prices_real_time (time, symbol, price, day_volume, exchange, received_at, session, seq)
            SELECT time, 'RULES', 1, volume, exchange, time, 2, row_number() OVER (ORDER BY time)
            FROM (SELECT timestamptz '2025-11-05 00:00:00+00' + after::interval AS time, volume, exchange
                  FROM unnest(%s, %s, %s::float8[]) AS steps (after, exchange, volume)) AS steps
            """,
            *(list(column) for column in zip(*steps, strict=True)),
        )
        rows = backend.database.query(
            "SELECT volume FROM candles('1 minute', '2025-11-05 00:00:00+00', '2025-11-07 00:00:00+00') "
            "WHERE symbol = 'RULES' ORDER BY bucket"
        )
    finally:
        backend.database.query("DELETE FROM prices_real_time WHERE symbol = 'RULES'")
    assert [volume for (volume,) in rows] == expected


@pytest.mark.parametrize("heading", PROGRAMS)
def test_example_programs_return_the_manual_rows(
    heading: str, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", backend.database.url)
    monkeypatch.setenv("PGTZ", "America/New_York")  # a zone whose clocks change within the rows
    for block, check in zip(SECTIONS[heading], PROGRAMS[heading], strict=True):
        names: dict[str, Any] = {}
        exec(compile(at(NOW, block.code), str(PAGE), "exec"), names)  # noqa: S102
        check(names, tmp_path)
        assert_shown(block.shown, capsys.readouterr().out)
        about = len(ticks("AAPL", begin_of(NOW, DAY) - DAY))
        assert backend.reads(names["QUERY"]) <= 4 * about < backend.rows
