"""Consumers that are killed, paused or frozen lose and duplicate nothing."""

from __future__ import annotations

import random
import signal

import pytest

from tests.support.capture import (
    REAL_CAPTURE,
    SESSION,
    make_events,
    read_capture,
    replay,
    ticks,
)
from tests.support.pipeline import Pipeline
from tests.support.waiting import wait_for

#: A consumer that kills itself after the commit and before the first ack of prices.
DIES_BEFORE_ACK = """
import os, signal
from common.streams.group import ConsumerGroup
from consumer.cli import main

read = ConsumerGroup.read
def die(stream, count, block_ms=None, done=()):
    if stream.key == "prices" and done:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(stream, count, block_ms, done)

ConsumerGroup.read = die
main()
"""


#: A consumer with IDLE_IN_TRANSACTION_TIMEOUT of 1 s instead of 20 s.
CONSUMER_WITH_SHORT_TIMEOUT = """
from common.database import connections
connections.SETTINGS = connections.SETTINGS.replace("'20s'", "'1s'")
from consumer import cli

cli.main()
"""


def test_consumer_killed_within_a_batch_loses_nothing(pipeline: Pipeline) -> None:
    events = make_events(2500)
    pipeline.append(list(ticks(events, SESSION)))
    with pipeline.database.locked():
        victim = pipeline.consumer()
        wait_for(pipeline.database.waiting, message="the victim waits within its INSERT")
        wait_for(lambda: list(pipeline.pending().values()) == [2000], message="it has read the next one, too")
        victim.kill()
    assert pipeline.database.count() == 0
    survivor = pipeline.consumer("--claim-idle", "0.5")
    pipeline.wait_until_stored(len(events))
    assert "claimed: 1000 entries of prices" in survivor.said()
    assert survivor.stop() == 0
    assert pipeline.nothing_pending()
    pipeline.assert_stored_exactly(events)


def test_restarted_consumer_with_a_fixed_name_processes_its_pending_entries(pipeline: Pipeline) -> None:
    events = make_events(1500)
    pipeline.append(list(ticks(events, SESSION)))
    with pipeline.database.locked():
        victim = pipeline.consumer(CONSUMER_NAME="steady")
        wait_for(pipeline.database.waiting)
        wait_for(lambda: pipeline.pending() == {"steady": 1500})
        victim.kill()
    again = pipeline.consumer("--claim-idle", "3600", CONSUMER_NAME="steady")
    pipeline.wait_until_stored(len(events))
    assert again.stop() == 0
    assert "recovered: 1000 pending entries of prices" in again.said()
    assert pipeline.nothing_pending()
    pipeline.assert_stored_exactly(events)


def test_consumer_killed_between_commit_and_ack_duplicates_nothing(pipeline: Pipeline) -> None:
    events = make_events(2500)
    pipeline.append(list(ticks(events, SESSION)))
    victim = pipeline.processes.start("python", "-c", DIES_BEFORE_ACK)
    assert victim.wait() == -signal.SIGKILL
    assert pipeline.database.count() == 1000  # committed …
    assert list(pipeline.pending().values()) == [2000]  # … and not acked; the next batch had been read

    survivor = pipeline.consumer("--drain", "--claim-idle", "0.5")
    assert survivor.wait() == 0
    assert "stopped: 1500 rows stored, 1000 duplicates, 0 dead letters" in survivor.said()
    assert pipeline.nothing_pending()
    pipeline.assert_stored_exactly(events)


def test_paused_consumer_whose_batch_was_claimed_duplicates_nothing(pipeline: Pipeline) -> None:
    events = make_events(1000)
    pipeline.append(list(ticks(events, SESSION)))
    with pipeline.database.locked():
        sleeper = pipeline.consumer("--log-level", "DEBUG")
        wait_for(pipeline.database.waiting)
        sleeper.signal(signal.SIGSTOP)
        pipeline.database.query("SELECT pg_terminate_backend(%s)", pipeline.database.waiting()[0])
        wait_for(lambda: not pipeline.database.waiting())
    pipeline.drain()
    pipeline.assert_stored_exactly(events)
    sleeper.signal(signal.SIGCONT)
    sleeper.wait_until_said("try 1, next in")
    sleeper.wait_until_said("stored: 0 new, 1000 duplicates, 0 dead letters")
    assert sleeper.stop() == 0
    pipeline.assert_stored_exactly(events)


def test_consumer_frozen_within_a_transaction_does_not_block_others(pipeline: Pipeline) -> None:
    events = make_events(500)
    pipeline.append([*ticks(events, SESSION)])
    with pipeline.database.locked():
        frozen = pipeline.processes.start("python", "-c", CONSUMER_WITH_SHORT_TIMEOUT)
        wait_for(lambda: len(pipeline.database.waiting()) == 1)
        frozen.signal(signal.SIGSTOP)
    others = [pipeline.consumer("--claim-idle", "0.5") for _ in range(2)]
    pipeline.wait_until_stored(500)
    wait_for(pipeline.nothing_pending)
    frozen.signal(signal.SIGCONT)
    wait_for(lambda: "the database: " in frozen.said())
    assert [each.stop() for each in (frozen, *others)] == [0, 0, 0]
    pipeline.assert_stored_exactly(events)


def test_five_random_consumer_kills_lose_and_duplicate_nothing(pipeline: Pipeline) -> None:
    rng = random.Random(1)
    events = make_events(8000)
    pipeline.append(list(ticks(events, SESSION)))
    options = ("--max-batch-size", "20", "--claim-idle", "1")
    consumers = [pipeline.consumer(*options) for _ in range(2)]
    for moment in sorted(rng.sample(range(1, len(events) * 3 // 4), 5)):
        pipeline.wait_until_stored(moment)
        victim = rng.choice(consumers)
        consumers.remove(victim)
        victim.kill()
        consumers.append(pipeline.consumer(*options))
    pipeline.drain()
    assert pipeline.nothing_pending()
    pipeline.assert_stored_exactly(events)


@pytest.mark.skipif(not REAL_CAPTURE.exists(), reason="the recorded prices are not beside this repository")
def test_recorded_prices_survive_five_consumer_kills(pipeline: Pipeline) -> None:
    rng = random.Random(5)
    events = read_capture(REAL_CAPTURE)
    options = ("--max-batch-size", "50", "--claim-idle", "1")
    consumers = [pipeline.consumer(*options) for _ in range(2)]
    with replay(REAL_CAPTURE) as simulator:
        producer = pipeline.producer(simulator.url, symbols=["EUR/USD", "USD/JPY"])
        for moment in sorted(rng.sample(range(1, len(events) * 3 // 4), 5)):
            pipeline.wait_until_stored(moment)
            consumers.pop(rng.randrange(2)).kill()
            consumers.append(pipeline.consumer(*options))
        wait_for(lambda: pipeline.appended() >= len(events))
        assert producer.stop() == 0
    pipeline.drain()
    pipeline.assert_stored_exactly(events)
