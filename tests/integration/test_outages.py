"""Redis and the database stop, crash and return while prices arrive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.capture import (
    SESSION,
    make_events,
    replay,
    ticks,
    write_capture,
)
from tests.support.pipeline import Pipeline
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator


def test_database_restart_loses_nothing(breakable_pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline = breakable_pipeline
    events = make_events(4000)
    with replay(write_capture(tmp_path / "capture.ndjson", events, seconds=2), speed=1) as simulator:
        consumer = pipeline.consumer()
        producer = pipeline.producer(simulator.url)
        pipeline.wait_until_stored(200)
        pipeline.database.close()
        pipeline.servers.postgres.stop()
        consumer.wait_until_said("try 1, next in")
        wait_for(lambda: pipeline.appended() == len(events), message="prices go on arriving")
        assert consumer.status is None
        pipeline.servers.postgres.start()
        pipeline.wait_until_stored(len(events))
        assert producer.stop() == 0
    assert consumer.stop() == 0
    assert pipeline.nothing_pending()
    pipeline.assert_stored_exactly(events)


def test_database_crash_loses_nothing(breakable_pipeline: Pipeline) -> None:
    pipeline = breakable_pipeline
    events = make_events(6000)
    pipeline.append(list(ticks(events, SESSION)))
    consumer = pipeline.consumer("--max-batch-size", "50")
    pipeline.wait_until_stored(500)
    pipeline.database.close()
    pipeline.servers.postgres.kill()
    consumer.wait_until_said("try 1, next in")
    pipeline.servers.postgres.start()
    pipeline.wait_until_stored(len(events))
    assert consumer.stop() == 0
    pipeline.assert_stored_exactly(events)


def test_consumers_started_before_the_servers_wait_for_them(breakable_pipeline: Pipeline) -> None:
    pipeline = breakable_pipeline
    events = make_events(100)
    pipeline.append(list(ticks(events, SESSION)))
    pipeline.servers.stop()
    consumer = pipeline.consumer()
    consumer.wait_until_said("Redis: ")
    pipeline.servers.valkey.start()
    consumer.wait_until_said("the database: ")
    pipeline.servers.postgres.start()
    pipeline.wait_until_stored(len(events))
    assert consumer.stop() == 0
    pipeline.assert_stored_exactly(events)


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "killed"])
def test_redis_outage_loses_nothing(breakable_pipeline: Pipeline, tmp_path: Path, crash: bool) -> None:
    pipeline = breakable_pipeline
    events = make_events(4000)
    with replay(write_capture(tmp_path / "capture.ndjson", events, seconds=2), speed=1) as simulator:
        consumer = pipeline.consumer()
        producer = pipeline.producer(simulator.url)
        pipeline.wait_until_stored(200)
        if crash:
            pipeline.servers.valkey.kill()
        else:
            pipeline.servers.valkey.stop()
        producer.wait_until_said("spooling to ")
        consumer.wait_until_said("Redis: ")
        assert simulator.wait(PATIENCE), "the replay goes on while Redis is away"
        pipeline.servers.valkey.start()
        pipeline.wait_until_stored(len(events))
        assert producer.stop() == 0
    assert consumer.stop() == 0
    assert pipeline.nothing_pending()
    pipeline.assert_stored_exactly(events)
    assert not list((tmp_path / "spool").rglob("*.spool")), "an empty spool is removed"


def test_next_producer_appends_the_spool_of_a_killed_one(breakable_pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline = breakable_pipeline
    events = make_events(1000)
    with replay(write_capture(tmp_path / "capture.ndjson", events)) as simulator:
        pipeline.servers.valkey.stop()
        first = pipeline.producer(simulator.url)
        assert simulator.wait(PATIENCE)
        assert first.stop() == 0
    assert f"stopped: {len(events)} price events received" in first.said()
    pipeline.servers.valkey.start()
    with Simulator(SimulatorConfig(rate=1)) as simulator:
        second = pipeline.producer(simulator.url, symbols=["AAPL"])
        wait_for(lambda: pipeline.appended() >= len(events))
        assert second.stop() == 0
    pipeline.drain()
    pipeline.assert_stored_exactly(events, session=pipeline.sessions()[0])
    assert pipeline.last_seqs()[0] == len(events)
