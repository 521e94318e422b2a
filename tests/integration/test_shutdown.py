"""Signals and `--drain`: each process finishes its work and exits."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from consumer import app
from tests.support.capture import (
    SESSION,
    Event,
    make_events,
    replay,
    ticks,
    write_capture,
)
from tests.support.pipeline import Pipeline
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

#: A consumer that waits 1 s instead of 8.5 s for an unresponsive server at shutdown.
CONSUMER_WITH_SHORT_SHUTDOWN = """
from consumer import app, cli

app.STOP_WITHIN = 1.0
cli.main()
"""


#: A signal that arrives while stop.wait() has the lock of the event.
SIGNALLED_WHILE_WAITING = """
import signal
from common.process import stop_on_signals

stop = stop_on_signals()
with stop._cond:
    signal.raise_signal(signal.SIGTERM)
assert stop.wait(5)
"""


def test_stopped_producer_flushes_and_reports_its_last_seq(pipeline: Pipeline) -> None:
    sent: list[Event] = []
    with Simulator(SimulatorConfig(rate=2000), journal=lambda _, event: sent.append(event)) as simulator:
        producer = pipeline.producer(simulator.url)
        wait_for(lambda: pipeline.appended() > 500)
        assert producer.stop() == 0
    story = pipeline.feed_entries()
    kinds = [event.event for event in story]
    assert (kinds[0], kinds[-1], kinds.count("stopped")) == ("started", "stopped", 1)
    assert [int(event.number) for event in story] == list(range(1, len(story) + 1))
    last = json.loads(story[-1].detail)["last_seq"]
    assert last == pipeline.appended()
    pipeline.drain()
    pipeline.assert_stored_exactly(sent[:last])  # events still unread in the closed connection were never received
    assert pipeline.last_seqs() == [last]


def test_stopped_consumers_finish_their_batches_and_leave(pipeline: Pipeline) -> None:
    events = make_events(3000)
    pipeline.append(list(ticks(events, SESSION)))
    with pipeline.database.locked():
        consumers = [pipeline.consumer("--max-batch-size", "700") for _ in range(2)]
        wait_for(lambda: len(pipeline.database.waiting()) == 2)
        wait_for(lambda: sorted(pipeline.pending().values()) == [1400, 1400], message="each has two batches")
        for consumer in consumers:
            consumer.signal(signal.SIGTERM)
    assert [consumer.wait() for consumer in consumers] == [0, 0]
    assert pipeline.nothing_pending()
    assert pipeline.consumers() == set()
    pipeline.assert_stored_exactly(events[:2800])
    pipeline.drain()
    pipeline.assert_stored_exactly(events)


def test_consumer_stopped_while_the_database_hangs_leaves_its_batch_to_others(pipeline: Pipeline) -> None:
    assert app.STOP_WITHIN < 10
    events = make_events(100)
    pipeline.append(list(ticks(events, SESSION)))
    with pipeline.database.locked():
        consumer = pipeline.processes.start("python", "-c", CONSUMER_WITH_SHORT_SHUTDOWN)
        wait_for(pipeline.database.waiting)
        assert consumer.stop() == 1
    assert consumer.last_log_line()[0].startswith("consumer: shutdown timed out: the database or Redis did not answer")
    assert list(pipeline.pending().values()) == [100]
    pipeline.drain()
    pipeline.assert_stored_exactly(events)


def test_second_signal_stops_immediately(pipeline: Pipeline) -> None:
    pipeline.append(list(ticks(make_events(100), SESSION)))
    with pipeline.database.locked():
        consumer = pipeline.consumer()
        wait_for(pipeline.database.waiting)
        consumer.signal(signal.SIGINT)
        # After one signal the consumer would exit with 1 because the database does not respond.
        assert consumer.stop(PATIENCE) in {128 + signal.SIGINT, 128 + signal.SIGTERM}
    assert list(pipeline.pending().values()) == [100]


def test_signals_are_handled_while_the_main_thread_is_blocked(pipeline: Pipeline) -> None:
    process = pipeline.processes.start("python", "-c", SIGNALLED_WHILE_WAITING)
    assert process.wait() == 0


def test_drain_claims_the_entries_of_a_killed_consumer(pipeline: Pipeline) -> None:
    events = make_events(1500)
    pipeline.append(list(ticks(events, SESSION)))
    pipeline.prices.ensure_group()
    assert len(pipeline.prices.read(300)) == 300  # as a consumer reads before it is killed
    consumer = pipeline.consumer("--drain", "--claim-idle", "2")
    pipeline.hold_until_said(pipeline.prices, consumer, "drain: 300 entries pending on other consumers")
    assert pipeline.database.count() == 1200
    assert consumer.status is None
    assert consumer.wait() == 0
    assert pipeline.nothing_pending()
    pipeline.assert_stored_exactly(events)


def test_drain_includes_the_feed_stream(pipeline: Pipeline, tmp_path: Path) -> None:
    with replay(write_capture(tmp_path / "capture.ndjson", make_events(10))) as simulator:
        producer = pipeline.producer(simulator.url)
        wait_for(lambda: pipeline.appended() == 10)
        assert producer.stop() == 0
    pipeline.feed.ensure_group()
    held = len(pipeline.feed.read(1000))
    assert held > 3
    consumer = pipeline.consumer("--drain", "--claim-idle", "2")
    pipeline.hold_until_said(pipeline.feed, consumer, f"drain: {held} entries pending on other consumers")
    assert consumer.wait() == 0
    assert pipeline.last_seqs() == [10]


def test_drain_ends_immediately_on_missing_streams(empty_pipeline: Pipeline) -> None:
    empty_pipeline.drain()
    assert empty_pipeline.database.count() == 0  # the schema exists
