"""The hypertable of ticks: compression, chunks and migration from a regular table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from common import tick
from common.database.migrations import apply
from common.errors import ConfigurationError
from consumer.tables import PRICES
from consumer.writer import Stored, Writer
from tests.support.candles import (
    COLUMNS,
    DAY,
    HOUR,
    START,
    Traded,
    assert_candles,
    compress,
    insert_ticks,
    make_plain,
    make_ticks,
    store_of,
)
from tests.support.capture import make_events, ticks
from tests.support.pipeline import Database
from tests.support.sessions import entry
from tests.support.timescaledb import refresh_aggregate


def test_batch_redelivered_into_compressed_chunks_duplicates_nothing(hypertable: Database) -> None:
    ((version,),) = hypertable.query("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
    if tuple(map(int, version.split(".")[:2])) < (2, 18):
        pytest.skip(f"TimescaleDB {version} drops new rows that arrive beside old ones (its issue 7672)")
    session = 1_760_000_000_000_000
    entries = [entry(tick.encode(each)) for each in ticks(make_events(5000), session)]
    with closing(store_of(hypertable)) as store:
        assert Writer(store).insert_batch(PRICES, "prices", entries[:4000]) == Stored(4000, 0, 0)
        compress(hypertable)
        assert hypertable.query("SELECT bool_and(is_compressed) FROM timescaledb_information.chunks "
                                "WHERE hypertable_name = 'prices_real_time'") == [(True,)]  # fmt: skip
        assert Writer(store).insert_batch(PRICES, "prices", entries[:2000]) == Stored(0, 2000, 0)
        assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(1000, 4000, 0)
    assert hypertable.query("SELECT count(*), count(DISTINCT seq) FROM prices_real_time") == [(5000, 5000)]


def test_old_chunks_move_to_the_documented_columnstore(hypertable: Database) -> None:
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


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def test_one_hour_in_months_of_minutes_is_read_by_index(hypertable: Database) -> None:
    """Reading one hour touches about one hour of rows, although three months are stored."""
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


def test_regular_database_is_migrated_by_one_command_only(timescale: Database) -> None:
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


def test_chunk_interval_is_an_option(timescale: Database) -> None:
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
