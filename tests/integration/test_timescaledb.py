"""On a real TimescaleDB: the ticks are a hypertable, and all that is promised holds there as it does without.

TIMESCALEDB_URL names a server to test against; without it tests/timescaledb has one. See NpmServer for what that one
cannot do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from common import tick
from common.settings import Secret
from consumer.schema import apply, read_migrations
from consumer.store import PRICES, PriceStore, Stored
from tests.support.capture import Event, make_events, ticks, write_capture
from tests.support.pipeline import Database, Pipeline
from tests.support.told import entry
from tests.support.waiting import wait_for
from tickpipe.simulator import Simulator, SimulatorConfig

SESSION = 1_760_000_000_000_000
DAY = 86_400


@pytest.fixture
def store(timescale: Database) -> Iterator[PriceStore]:
    """The consumer's way into a database with the schema."""
    with closing(PriceStore(Secret(timescale.url))) as store:
        apply(store)
        yield store


def make_days(count: int, days: int = 3) -> list[Event]:
    """So many events, from the first second of some days to their last."""
    events = make_events(count)
    start = events[0]["timestamp"] // DAY * DAY
    return [{**event, "timestamp": start + number * days * DAY // count} for number, event in enumerate(events)]


def seqs(database: Database) -> list[int]:
    return [seq for (seq,) in database.query("SELECT seq FROM prices_real_time ORDER BY seq")]


def test_all_of_sql_is_applied_once(timescale: Database) -> None:
    with closing(PriceStore(Secret(timescale.url))) as store:
        assert apply(store) == [migration.name for migration in read_migrations()]
        assert apply(store) == []


def test_all_of_sql_is_applied_in_one_transaction(timescale: Database) -> None:
    """The scheduler runs the policies as soon as they are committed: a refresh by us after that would meet theirs."""
    with closing(PriceStore(Secret(timescale.url))) as store:
        apply(store)
    assert timescale.query("SELECT count(DISTINCT at) FROM tickpipe_migrations") == [(1,)]


@pytest.mark.skipif(
    "TIMESCALEDB_URL" not in os.environ, reason="the npm server is one backend: consumers wait for each other"
)
def test_consumers_that_start_at_once_on_an_empty_database_agree(timescale_pipeline: Pipeline) -> None:
    pipeline, events = timescale_pipeline, make_days(50)
    pipeline.append(list(ticks(events, SESSION)))
    consumers = [pipeline.consumer("--drain") for _ in range(5)]
    assert [consumer.wait() for consumer in consumers] == [0] * 5
    assert sum("schema: applied" in consumer.said() for consumer in consumers) == 1
    pipeline.assert_stored_exactly(events)


def test_the_ticks_are_a_hypertable_with_the_primary_key_as_its_only_index(
    timescale: Database, store: PriceStore
) -> None:
    assert timescale.query(
        "SELECT hypertable_name, column_name, time_interval::text FROM timescaledb_information.dimensions "
        "WHERE hypertable_schema = 'public'"
    ) == [("prices_real_time", "time", "1 day")]
    assert timescale.query("SELECT indexname FROM pg_indexes WHERE tablename = 'prices_real_time'") == [
        ("prices_real_time_pkey",)
    ]
    store.insert_block(PRICES, "prices", [entry(tick.encode(each)) for each in ticks(make_days(300), SESSION)])
    chunks = timescale.query("SELECT show_chunks('prices_real_time')::oid")
    assert len(chunks) == 3
    indexes = "SELECT indisprimary, indisvalid FROM pg_index WHERE indrelid = %s"
    assert [timescale.query(indexes, chunk) for (chunk,) in chunks] == [[(True, True)]] * 3


def test_a_block_over_many_chunks_is_stored_once(timescale: Database, store: PriceStore) -> None:
    entries = [entry(tick.encode(each)) for each in ticks(make_days(5000), SESSION)]
    assert store.insert_block(PRICES, "prices", entries[:3000]) == Stored(3000, 0, 0)
    assert store.insert_block(PRICES, "prices", entries) == Stored(2000, 3000, 0)
    assert store.insert_block(PRICES, "prices", entries, bisect=True) == Stored(0, 5000, 0)
    assert seqs(timescale) == list(range(1, 5001))


def test_no_bound_on_what_is_unpacked_refuses_a_block_that_is_delivered_again(store: PriceStore) -> None:
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SHOW timescaledb.max_tuples_decompressed_per_dml_transaction")
        assert cursor.fetchone() == ("0",)


def test_bad_values_are_dead_letters_and_the_rest_of_the_block_is_stored(
    timescale: Database, store: PriceStore
) -> None:
    block = list(ticks(make_days(3000), SESSION))
    block[99] = block[99]._replace(price="dear")
    block[1999] = block[1999]._replace(price="NaN")
    block[2999] = block[2999]._replace(time="57743000000")
    entries = [entry(tick.encode(each)) for each in block]
    assert store.insert_block(PRICES, "prices", entries) == Stored(2997, 0, 3)
    assert store.insert_block(PRICES, "prices", entries) == Stored(0, 2997, 3)
    assert timescale.query("SELECT seq FROM dead_letters ORDER BY seq") == [(100,), (2000,), (3000,)]
    assert seqs(timescale) == [seq for seq in range(1, 3001) if seq not in {100, 2000, 3000}]


def test_what_the_websocket_sends_is_what_is_stored(timescale_pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline, events = timescale_pipeline, make_days(3000)
    capture = write_capture(tmp_path / "capture.ndjson", events)
    with Simulator(SimulatorConfig(capture=capture, speed=0.0)) as simulator:
        producer = pipeline.producer(simulator.url)
        wait_for(lambda: pipeline.appended() >= len(events), message="all is in the stream")
        assert producer.stop() == 0
    pipeline.drain()
    pipeline.assert_stored_exactly(events)
    assert pipeline.database.query("SELECT count(*) FROM show_chunks('prices_real_time')") == [(3,)]
    verify = pipeline.processes.start("tickpipe", "verify", "--spool-dir", str(tmp_path / "spool"))
    assert verify.wait() == 0
    assert "1 sessions verified, 0 incomplete" in verify.said()


def test_the_vendors_bars_fill_the_candles_of_the_aggregates(timescale: Database, store: PriceStore) -> None:
    events = [
        {**event, "symbol": "AAPL", "timestamp": 1_760_000_040 + 60 * n} for n, event in enumerate(make_events(3))
    ]
    store.insert_block(PRICES, "prices", [entry(tick.encode(each)) for each in ticks(events, SESSION)])
    timescale.query(
        "INSERT INTO candles_backfill (symbol, bucket, open, high, low, close)"
        " SELECT 'AAPL', to_timestamp(1760000040 + 60 * n), 1, 1, 1, 1 FROM generate_series(1, 1) AS n"
    )
    filled = "SELECT source FROM candles_1m_filled WHERE symbol = 'AAPL' AND bucket >= '2025-10-09' ORDER BY bucket"
    assert timescale.query(filled) == [("ticks",), ("backfill",), ("ticks",)]
