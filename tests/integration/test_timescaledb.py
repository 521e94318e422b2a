"""On a real TimescaleDB: the ticks are a hypertable, and all that is promised holds there as it does without.

TIMESCALEDB_URL names a server to test against; without it tests/timescaledb has one. See NpmServer for what that one
cannot do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from common import tick
from common.database.client import DatabaseClient
from common.database.migrations import apply, read_migrations
from common.settings import Secret
from consumer.tables import PRICES
from consumer.writer import Stored, Writer
from tests.support.capture import Event, make_events, ticks, write_capture
from tests.support.pipeline import Database, Pipeline
from tests.support.sessions import entry
from tests.support.timescaledb import needs_two_backends
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

SESSION = 1_760_000_000_000_000
DAY = 86_400


@pytest.fixture
def store(timescale: Database) -> Iterator[DatabaseClient]:
    """A price store on a TimescaleDB with the schema."""
    with closing(DatabaseClient(Secret(timescale.url))) as store:
        apply(store)
        yield store


def make_days(count: int, days: int = 3) -> list[Event]:
    """Make events spread evenly over some days."""
    events = make_events(count)
    start = events[0]["timestamp"] // DAY * DAY
    return [{**event, "timestamp": start + number * days * DAY // count} for number, event in enumerate(events)]


def seqs(database: Database) -> list[int]:
    return [seq for (seq,) in database.query("SELECT seq FROM prices_real_time ORDER BY seq")]


def test_all_migrations_are_applied_once(timescale: Database) -> None:
    with closing(DatabaseClient(Secret(timescale.url))) as store:
        assert apply(store) == [migration.name for migration in read_migrations()]
        assert apply(store) == []


def test_all_migrations_are_applied_in_one_transaction(timescale: Database) -> None:
    """The scheduler runs the policies once they are committed. A refresh in a later transaction would collide."""
    with closing(DatabaseClient(Secret(timescale.url))) as store:
        apply(store)
    assert timescale.query("SELECT count(DISTINCT at) FROM tickpipe_migrations") == [(1,)]


@needs_two_backends
def test_simultaneous_consumers_agree_on_an_empty_database(timescale_pipeline: Pipeline) -> None:
    pipeline, events = timescale_pipeline, make_days(50)
    pipeline.append(list(ticks(events, SESSION)))
    consumers = [pipeline.consumer("--drain") for _ in range(5)]
    assert [consumer.wait() for consumer in consumers] == [0] * 5
    assert sum("schema: applied" in consumer.said() for consumer in consumers) == 1
    pipeline.assert_stored_exactly(events)


def test_ticks_are_a_hypertable_with_only_the_primary_key_index(timescale: Database, store: DatabaseClient) -> None:
    assert timescale.query(
        "SELECT hypertable_name, column_name, time_interval::text FROM timescaledb_information.dimensions "
        "WHERE hypertable_schema = 'public'"
    ) == [("prices_real_time", "time", "1 day")]
    assert timescale.query("SELECT indexname FROM pg_indexes WHERE tablename = 'prices_real_time'") == [
        ("prices_real_time_pkey",)
    ]
    Writer(store).insert_batch(PRICES, "prices", [entry(tick.encode(each)) for each in ticks(make_days(300), SESSION)])
    chunks = timescale.query("SELECT show_chunks('prices_real_time')::oid")
    assert len(chunks) == 3
    indexes = "SELECT indisprimary, indisvalid FROM pg_index WHERE indrelid = %s"
    assert [timescale.query(indexes, chunk) for (chunk,) in chunks] == [[(True, True)]] * 3


def test_batch_over_many_chunks_is_stored_once(timescale: Database, store: DatabaseClient) -> None:
    entries = [entry(tick.encode(each)) for each in ticks(make_days(5000), SESSION)]
    assert Writer(store).insert_batch(PRICES, "prices", entries[:3000]) == Stored(3000, 0, 0)
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(2000, 3000, 0)
    assert Writer(store).insert_batch(PRICES, "prices", entries, bisect=True) == Stored(0, 5000, 0)
    assert seqs(timescale) == list(range(1, 5001))


def test_decompression_limit_does_not_refuse_a_redelivered_batch(store: DatabaseClient) -> None:
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SHOW timescaledb.max_tuples_decompressed_per_dml_transaction")
        assert cursor.fetchone() == ("0",)


def test_bad_values_are_dead_letters_and_the_rest_of_the_batch_is_stored(
    timescale: Database, store: DatabaseClient
) -> None:
    batch = list(ticks(make_days(3000), SESSION))
    batch[99] = batch[99]._replace(price="dear")
    batch[1999] = batch[1999]._replace(price="NaN")
    batch[2999] = batch[2999]._replace(time="57743000000")
    entries = [entry(tick.encode(each)) for each in batch]
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(2997, 0, 3)
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(0, 2997, 3)
    assert timescale.query("SELECT seq FROM dead_letters ORDER BY seq") == [(100,), (2000,), (3000,)]
    assert seqs(timescale) == [seq for seq in range(1, 3001) if seq not in {100, 2000, 3000}]


def test_every_sent_price_is_stored(timescale_pipeline: Pipeline, tmp_path: Path) -> None:
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
    assert "1 session verified, 0 incomplete" in verify.said()


def test_vendor_bars_fill_the_aggregated_candles(timescale: Database, store: DatabaseClient) -> None:
    events = [
        {**event, "symbol": "AAPL", "timestamp": 1_760_000_040 + 60 * n} for n, event in enumerate(make_events(3))
    ]
    Writer(store).insert_batch(PRICES, "prices", [entry(tick.encode(each)) for each in ticks(events, SESSION)])
    timescale.query(
        "INSERT INTO candles_backfill (symbol, bucket, open, high, low, close)"
        " SELECT 'AAPL', to_timestamp(1760000040 + 60 * n), 1, 1, 1, 1 FROM generate_series(1, 1) AS n"
    )
    filled = "SELECT source FROM candles_1m_filled WHERE symbol = 'AAPL' AND bucket >= '2025-10-09' ORDER BY bucket"
    assert timescale.query(filled) == [("ticks",), ("backfill",), ("ticks",)]
