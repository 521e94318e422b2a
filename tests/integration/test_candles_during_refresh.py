"""A query on candles loses none while chunks of the aggregates or of the ticks are created."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import psycopg2
import pytest

from tests.support.candles import (
    COLUMNS,
    VIEWS,
    Candle,
    candles,
    found,
    insert_ticks,
    make_ticks,
    refresh,
)
from tests.support.pipeline import Database
from tests.support.timescaledb import needs_two_backends
from tests.support.waiting import wait_for

#: Key of the advisory lock on which a query waits while it is planned.
LOCK = 4242
#: Ticks of three days, and of three days in other chunks of the aggregates.
OLD = make_ticks(21, count=400)
NEW = make_ticks(22, count=400, start=datetime(2026, 6, 1, 1, tzinfo=UTC))


def waiting_query(view: str) -> str:
    """A query for these candles. It waits for the lock after the plan of its first branch is made.

    PostgreSQL plans the branches of UNION ALL in order, and calls immutable functions while it plans.
    """
    return (
        f"SELECT {COLUMNS} FROM {view} UNION ALL SELECT 'none', NULL, 0, 0, 0, 0, count(*), 0 FROM candles_horizon "
        f"HAVING wait_in_planning()"
    )


def run_during_planning(database: Database, event: Callable[[], object], reader: Database, sql: str) -> list[Candle]:
    """Start a waiting query, run `event` while the query is planned, and return its rows."""
    database.query("SELECT pg_advisory_lock(%s)", LOCK)
    with ThreadPoolExecutor(1) as executor:
        rows = executor.submit(reader.query, sql)
        try:
            waiting = (
                "SELECT true FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            wait_for(lambda: rows.done() or database.query(waiting, LOCK), message="the query waits in planning")
            assert not rows.done()
            event()
        finally:
            database.query("SELECT pg_advisory_unlock(%s)", LOCK)
        return sorted(Candle(*row) for row in rows.result())


@pytest.fixture
def reader(hypertable: Database) -> Iterator[Database]:
    """A second connection, with the function that waits for the lock."""
    hypertable.query(
        f"CREATE FUNCTION wait_in_planning() RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS "
        f"$$ BEGIN PERFORM pg_advisory_xact_lock({LOCK}); RETURN false; END $$"
    )
    with closing(Database(hypertable.url)) as reader:
        yield reader


@needs_two_backends
@pytest.mark.parametrize("view", VIEWS)
def test_refresh_between_planning_and_execution_loses_no_candle(
    hypertable: Database, reader: Database, view: str
) -> None:
    """The plan lacks the chunks that the refresh creates, but the query sees that their bars are aggregated."""
    query = waiting_query(view)
    insert_ticks(hypertable, OLD)
    rows = run_during_planning(hypertable, lambda: refresh(hypertable), reader, query)
    assert rows == candles(OLD, VIEWS[view])
    insert_ticks(hypertable, NEW, first=10_001)
    rows = run_during_planning(hypertable, lambda: refresh(hypertable), reader, query)
    assert rows == candles(OLD + NEW, VIEWS[view]) == found(hypertable, view)


@needs_two_backends
@pytest.mark.parametrize("view", VIEWS)
def test_chunk_of_ticks_created_during_planning_is_in_the_next_plan(
    hypertable: Database, reader: Database, view: str
) -> None:
    """A prepared query keeps its plan only if no chunk was created while it was planned."""
    insert_ticks(hypertable, OLD)
    reader.query("SET plan_cache_mode = force_generic_plan")
    reader.query(f"PREPARE query AS {waiting_query(view)}")
    rows = run_during_planning(hypertable, lambda: insert_ticks(hypertable, NEW, first=10_001), reader, "EXECUTE query")
    assert rows == candles(OLD, VIEWS[view])
    assert sorted(Candle(*row) for row in reader.query("EXECUTE query")) == candles(OLD + NEW, VIEWS[view])


@pytest.mark.parametrize("view", VIEWS)
def test_prepared_query_is_planned_again_for_new_chunks(hypertable: Database, view: str) -> None:
    """It has all candles, and reads the aggregates: a plan does not keep an old list of chunks."""
    tail = "SELECT unaggregated_tail(%s)::text"
    with closing(psycopg2.connect(hypertable.url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("SET plan_cache_mode = force_generic_plan")
        cursor.execute(f"PREPARE query AS SELECT {COLUMNS} FROM {view} ORDER BY symbol, bucket")
        cursor.execute(f"PREPARE tail AS {tail}, count(*) FROM {view}", (view[-2:],))
        insert_ticks(hypertable, OLD)
        for ticks in (OLD, OLD + NEW):
            insert_ticks(hypertable, ticks[len(OLD) :], first=10_001)
            for _ in range(2):
                cursor.execute("EXECUTE query")
                assert [Candle(*row) for row in cursor] == candles(ticks, VIEWS[view])
                cursor.execute("EXECUTE tail")
                ((since, _),) = cursor.fetchall()
                assert [(since,)] == hypertable.query(tail, view[-2:])
                refresh(hypertable)
        assert since > str(NEW[0].time), "only the newest are computed from the ticks"
        cursor.execute("DEALLOCATE ALL")  # the npm server has one backend for all connections
        cursor.execute("RESET plan_cache_mode")


@pytest.mark.parametrize("view", VIEWS)
def test_chunk_that_is_not_planned_makes_all_bars_of_its_width_unaggregated(hypertable: Database, view: str) -> None:
    width = view[-2:]
    insert_ticks(hypertable, OLD)
    refresh(hypertable)
    spans = "SELECT unaggregated(%s, planned_chunks())::text, unaggregated(%s, %s::oid[])::text"
    ((planned,),) = hypertable.query("SELECT planned_chunks()")
    ((aggregated, same),) = hypertable.query(spans, width, width, [*planned, 1])  # a chunk that was dropped since
    assert aggregated == same != "{[-infinity,infinity)}"
    assert len(planned) == 3
    for chunk in planned:
        ((table,),) = hypertable.query("SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = %s", chunk)
        ((ours,),) = hypertable.query(f"SELECT pg_get_viewdef('aggregate_{width}'::regclass) LIKE %s", f"%{table}%")
        ((_, without),) = hypertable.query(spans, width, width, [each for each in planned if each != chunk])
        assert (without == "{[-infinity,infinity)}") == ours
