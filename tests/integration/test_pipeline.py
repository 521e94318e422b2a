"""From the websocket to the rows, with the real commands on real servers.

Stored values are compared exactly with the values sent.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from common import tick
from tests.support.capture import (
    COINS,
    PAIRS,
    REAL_CAPTURE,
    SESSION,
    STOCKS,
    SYMBOLS,
    Event,
    make_events,
    read_capture,
    replay,
    ticks,
    write_capture,
)
from tests.support.pipeline import GROUP, Pipeline
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator


def test_every_sent_price_is_stored(pipeline: Pipeline, tmp_path: Path) -> None:
    events = make_events(3000)
    assert {event["symbol"] for event in events} == set(SYMBOLS)
    with replay(write_capture(tmp_path / "capture.ndjson", events)) as simulator:
        consumer = pipeline.consumer()
        producer = pipeline.producer(simulator.url)
        pipeline.wait_until_stored(len(events))
        assert producer.stop() == 0
        wait_for(lambda: pipeline.feed_events("stopped"), message="the consumer has stored `stopped`")
    assert consumer.stop() == 0
    pipeline.assert_stored_exactly(events)
    assert pipeline.database.count("dead_letters") == 0


def test_feed_events_describe_the_session(pipeline: Pipeline, tmp_path: Path) -> None:
    events = make_events(500)
    with replay(write_capture(tmp_path / "capture.ndjson", events)) as simulator:
        producer = pipeline.producer(simulator.url, "--feed-name", "stocks", symbols=[*SYMBOLS, "NOSUCH"])
        wait_for(lambda: pipeline.appended() == len(events))
        assert producer.stop() == 0
    pipeline.drain()

    (started,) = pipeline.feed_events("started")
    assert (started["feed"], started["host"]) == ("stocks", "127.0.0.1")
    assert started["symbols"] == sorted([*SYMBOLS, "NOSUCH"])
    assert pipeline.feed_events("connected")[0]["host"] == "127.0.0.1"
    assert sorted(pipeline.feed_events("subscribed")[0]["symbols"]) == sorted(SYMBOLS)
    assert list(pipeline.feed_events("refused")[0]["symbols"]) == ["NOSUCH"]
    assert pipeline.last_seqs() == [len(events)]
    instruments = pipeline.feed_events("instrument")
    assert sorted(each["symbol"] for each in instruments) == sorted(SYMBOLS)  # each once
    found = {each["symbol"]: each.get("exchange") for each in instruments}
    assert found == {**STOCKS, **COINS, **dict.fromkeys(PAIRS)}


@pytest.mark.skipif(not REAL_CAPTURE.exists(), reason="the recorded prices are not beside this repository")
def test_recorded_prices_are_stored_unchanged(pipeline: Pipeline) -> None:
    with replay(REAL_CAPTURE) as simulator:
        for _ in range(2):
            pipeline.consumer()
        pipeline.producer(simulator.url, symbols=["EUR/USD", "USD/JPY"])
        pipeline.wait_until_stored(10_500)
    events = read_capture(REAL_CAPTURE)
    assert len(events) == 10_500
    pipeline.assert_stored_exactly(events)


def test_two_producers_share_a_stream_with_separate_sessions(pipeline: Pipeline, tmp_path: Path) -> None:
    events = [event for event in make_events(2000) if event["symbol"] in STOCKS]
    others = [event for event in make_events(2000, seed=2) if event["symbol"] in COINS]
    with (
        replay(write_capture(tmp_path / "stocks.ndjson", events, seconds=1), speed=1) as stocks,
        replay(write_capture(tmp_path / "coins.ndjson", others, seconds=1), speed=1) as coins,
    ):
        first = pipeline.producer(stocks.url, symbols=list(STOCKS))
        first.wait_until_said("subscribed:")
        second = pipeline.producer(coins.url, symbols=list(COINS))
        pipeline.consumer()
        pipeline.wait_until_stored(len(events) + len(others))
        assert [first.stop(), second.stop()] == [0, 0]
    session, other_session = pipeline.sessions()
    pipeline.assert_stored_exactly(events, session=session)
    pipeline.assert_stored_exactly(others, session=other_session)


def test_three_consumers_share_the_stream(pipeline: Pipeline) -> None:
    events = make_events(6000)
    pipeline.append(list(ticks(events, SESSION)))
    with pipeline.database.locked():  # until all three have a batch
        consumers = [pipeline.consumer("--max-batch-size", "100") for _ in range(3)]
        wait_for(lambda: len(pipeline.pending()) == 3, message="each consumer has a batch")
    pipeline.wait_until_stored(len(events))
    assert [consumer.stop() for consumer in consumers] == [0, 0, 0]
    assert pipeline.nothing_pending()
    assert all("stopped: 0 rows" not in consumer.said() for consumer in consumers)
    pipeline.assert_stored_exactly(events)


def test_two_consumers_with_one_name_lose_and_duplicate_nothing(pipeline: Pipeline) -> None:
    events = make_events(4000)
    pipeline.append(list(ticks(events, SESSION)))
    options = ("--max-batch-size", "50", "--consumer-name", "twin")
    with pipeline.database.locked():
        consumers = [pipeline.consumer(*options)]
        wait_for(lambda: pipeline.pending() == {"twin": 100})  # the current batch and the next
        consumers.append(pipeline.consumer(*options))
        consumers[1].wait_until_said("recovered: 50 pending entries")  # the current batch of the first consumer
    pipeline.wait_until_stored(1000)
    assert consumers[0].stop() == 0  # the name is removed only if nothing is pending on it
    pipeline.wait_until_stored(len(events))
    assert consumers[1].stop() == 0
    assert pipeline.nothing_pending()
    pipeline.assert_stored_exactly(events)


def test_stopping_consumer_keeps_a_name_that_has_pending_entries(pipeline: Pipeline) -> None:
    events = make_events(50)
    consumer = pipeline.consumer("--consumer-name", "twin")
    wait_for(lambda: pipeline.redis.exists("prices") and pipeline.consumers() == {"twin"})
    with pipeline.redis.pipeline(transaction=True) as pipe:  # in one transaction, before the other consumer reads
        for each in ticks(events, SESSION):
            pipe.xadd("prices", tick.encode(each))  # type: ignore[arg-type]
        pipe.xreadgroup(GROUP, "twin", {"prices": ">"})
        pipe.execute()
    assert consumer.stop() == 0
    assert pipeline.pending() == {"twin": 50}
    pipeline.drain()
    pipeline.assert_stored_exactly(events)


def test_sighup_reloads_the_symbols_file_without_reconnecting(pipeline: Pipeline, tmp_path: Path) -> None:
    sent: dict[str, int] = {}

    def journal(_connection: int, event: Event) -> None:
        sent[event["symbol"]] = sent.get(event["symbol"], 0) + 1

    symbols = tmp_path / "symbols.txt"
    symbols.write_text("# mine\nBTC/USD, AAPL\n")
    with Simulator(SimulatorConfig(rate=100), journal=journal) as simulator:
        producer = pipeline.producer(simulator.url, "--symbols-file", str(symbols), symbols=[])
        wait_for(lambda: set(sent) == {"BTC/USD", "AAPL"})

        symbols.write_text("BTC/USD\nETH/USD  # instead\n")
        producer.signal(signal.SIGHUP)
        wait_for(lambda: "ETH/USD" in sent)
        before = sent["AAPL"], sent["ETH/USD"], sent["BTC/USD"]
        wait_for(lambda: sent["ETH/USD"] > before[1] + 20 and sent["BTC/USD"] > before[2] + 20)
        assert sent["AAPL"] == before[0]

        symbols.write_text("\n")  # an empty file is refused as a mistake
        producer.signal(signal.SIGHUP)
        producer.wait_until_said("the subscriptions are unchanged")
        before = sent["AAPL"], sent["ETH/USD"], sent["BTC/USD"]
        wait_for(lambda: sent["ETH/USD"] > before[1] + 5 and sent["BTC/USD"] > before[2] + 5)

        assert producer.stop() == 0
        assert simulator.stop().connections == 1
