"""From the websocket to the rows, with the real commands on real servers, and what is killed or stopped on the way.

Counts and values are compared exactly with what was sent.
"""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

from common import tick
from common.formatting import counted
from common.tick import Tick
from consumer import app
from tests.support.capture import COINS, PAIRS, STOCKS, SYMBOLS, Event, make_events, read_capture, ticks, write_capture
from tests.support.pipeline import GROUP, Pipeline
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.simulator.websocket import Simulator, SimulatorConfig

REAL_CAPTURE = Path(__file__).parents[3] / "shared/data/fx-ticks.ndjson"
SESSION = 1_760_000_000_000_000

#: A consumer that dies at the last moment before the first ack of prices, when the commit has been made.
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

#: A consumer whose open transaction the database ends after 1 s, and not after 20.
SOON_TAKEN_FOR_FROZEN = """
from common.database.client import DatabaseClient
from consumer import cli

DatabaseClient.__init__.__kwdefaults__["settings"] += "SET LOCAL idle_in_transaction_session_timeout = '1s';"
cli.main()
"""

#: A consumer that, told to stop, waits 1 s and not nearly 10 s for what does not answer.
SOON_GIVES_UP = """
from consumer import app, cli

app.STOP_WITHIN = 1.0
cli.main()
"""

#: A signal that comes in the moment when stop.wait() holds the event's lock.
SIGNALLED_WHILE_WAITING = """
import signal
from common.process import stop_on_signals

stop = stop_on_signals()
with stop._cond:
    signal.raise_signal(signal.SIGTERM)
assert stop.wait(5)
"""


def replay(path: Path, speed: float = 0.0) -> Simulator:
    return Simulator(SimulatorConfig(capture=path, speed=speed))


# All goes well.


def test_what_the_websocket_sends_is_what_is_stored(pipeline: Pipeline, tmp_path: Path) -> None:
    events = make_events(3000)
    assert {event["symbol"] for event in events} == set(SYMBOLS)
    with replay(write_capture(tmp_path / "capture.ndjson", events)) as simulator:
        consumer = pipeline.consumer()
        producer = pipeline.producer(simulator.url)
        pipeline.wait_until_stored(len(events))
        assert producer.stop() == 0
        wait_for(lambda: pipeline.told("stopped"), message="the consumer has stored `stopped`")
    assert consumer.stop() == 0
    pipeline.assert_stored_exactly(events)
    assert pipeline.database.count("dead_letters") == 0


def test_the_feed_tells_its_story(pipeline: Pipeline, tmp_path: Path) -> None:
    events = make_events(500)
    with replay(write_capture(tmp_path / "capture.ndjson", events)) as simulator:
        producer = pipeline.producer(simulator.url, "--feed-name", "stocks", symbols=[*SYMBOLS, "NOSUCH"])
        wait_for(lambda: pipeline.appended() == len(events))
        assert producer.stop() == 0
    pipeline.drain()

    (started,) = pipeline.told("started")
    assert (started["feed"], started["host"]) == ("stocks", "127.0.0.1")
    assert started["symbols"] == sorted([*SYMBOLS, "NOSUCH"])
    assert pipeline.told("connected")[0]["host"] == "127.0.0.1"
    assert sorted(pipeline.told("subscribed")[0]["symbols"]) == sorted(SYMBOLS)
    assert list(pipeline.told("refused")[0]["symbols"]) == ["NOSUCH"]
    assert pipeline.last_seqs() == [len(events)]
    instruments = pipeline.told("instrument")
    assert sorted(each["symbol"] for each in instruments) == sorted(SYMBOLS)  # each once
    found = {each["symbol"]: each.get("exchange") for each in instruments}
    assert found == {**STOCKS, **COINS, **dict.fromkeys(PAIRS)}


@pytest.mark.skipif(not REAL_CAPTURE.exists(), reason="the recorded prices are not beside this repository")
def test_recorded_prices_arrive_as_they_were_recorded(pipeline: Pipeline) -> None:
    with replay(REAL_CAPTURE) as simulator:
        for _ in range(2):
            pipeline.consumer()
        pipeline.producer(simulator.url, symbols=["EUR/USD", "USD/JPY"])
        pipeline.wait_until_stored(10_500)
    events = read_capture(REAL_CAPTURE)
    assert len(events) == 10_500
    pipeline.assert_stored_exactly(events)


def test_two_producers_feed_one_stream_each_with_its_own_session(pipeline: Pipeline, tmp_path: Path) -> None:
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


def test_three_consumers_share_the_work(pipeline: Pipeline) -> None:
    events = make_events(6000)
    pipeline.append(list(ticks(events, SESSION)))
    with pipeline.database.locked():  # until all three are at work
        consumers = [pipeline.consumer("--max-batch-size", "100") for _ in range(3)]
        wait_for(lambda: len(pipeline.pending()) == 3, message="each consumer holds a block")
    pipeline.wait_until_stored(len(events))
    assert [consumer.stop() for consumer in consumers] == [0, 0, 0]
    assert pipeline.nothing_pending()
    assert all("stopped: 0 rows" not in consumer.said() for consumer in consumers)
    pipeline.assert_stored_exactly(events)


def test_two_live_consumers_under_one_name_do_no_harm(pipeline: Pipeline) -> None:
    events = make_events(4000)
    pipeline.append(list(ticks(events, SESSION)))
    options = ("--max-batch-size", "50", "--consumer-name", "twin")
    with pipeline.database.locked():
        consumers = [pipeline.consumer(*options)]
        wait_for(lambda: pipeline.pending() == {"twin": 100})  # one block in its hands, and the next
        consumers.append(pipeline.consumer(*options))
        consumers[1].wait_until_said("recovered: 50 pending entries")  # those that the first has in its hands
    pipeline.wait_until_stored(1000)
    assert consumers[0].stop() == 0  # takes its name off the group only if nothing is pending on it
    pipeline.wait_until_stored(len(events))
    assert consumers[1].stop() == 0
    assert pipeline.nothing_pending()
    pipeline.assert_stored_exactly(events)


def test_who_leaves_does_not_take_a_name_away_that_still_holds_entries(pipeline: Pipeline) -> None:
    events = make_events(50)
    consumer = pipeline.consumer("--consumer-name", "twin")
    wait_for(lambda: pipeline.redis.exists("prices") and pipeline.consumers() == {"twin"})
    with pipeline.redis.pipeline(transaction=True) as pipe:  # at once: the other twin is quicker
        for each in ticks(events, SESSION):
            pipe.xadd("prices", tick.encode(each))  # type: ignore[arg-type]
        pipe.xreadgroup(GROUP, "twin", {"prices": ">"})
        pipe.execute()
    assert consumer.stop() == 0
    assert pipeline.pending() == {"twin": 50}
    pipeline.drain()
    pipeline.assert_stored_exactly(events)


def test_symbols_file_is_followed_on_sighup_on_the_open_connection(pipeline: Pipeline, tmp_path: Path) -> None:
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

        symbols.write_text("\n")  # nothing: a slip, and refused as one
        producer.signal(signal.SIGHUP)
        producer.wait_until_said("the symbols stay as they were")
        before = sent["AAPL"], sent["ETH/USD"], sent["BTC/USD"]
        wait_for(lambda: sent["ETH/USD"] > before[1] + 5 and sent["BTC/USD"] > before[2] + 5)

        assert producer.stop() == 0
        assert simulator.stop().connections == 1


# What is killed.


def test_a_consumer_killed_in_the_middle_of_a_block_loses_nothing(pipeline: Pipeline) -> None:
    events = make_events(2500)
    pipeline.append(list(ticks(events, SESSION)))
    with pipeline.database.locked():
        victim = pipeline.consumer()
        wait_for(pipeline.database.waiting, message="the victim is in the middle of its INSERT")
        wait_for(lambda: list(pipeline.pending().values()) == [2000], message="it has read the next one, too")
        victim.kill()
    assert pipeline.database.count() == 0
    survivor = pipeline.consumer("--claim-idle", "0.5")
    pipeline.wait_until_stored(len(events))
    assert "claimed: 1000 entries of prices" in survivor.said()
    assert survivor.stop() == 0
    assert pipeline.nothing_pending()
    pipeline.assert_stored_exactly(events)


def test_a_consumer_with_a_fixed_name_takes_up_what_it_held_when_it_was_killed(pipeline: Pipeline) -> None:
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


def test_a_consumer_killed_between_commit_and_ack_doubles_nothing(pipeline: Pipeline) -> None:
    events = make_events(2500)
    pipeline.append(list(ticks(events, SESSION)))
    victim = pipeline.processes.start("python", "-c", DIES_BEFORE_ACK)
    assert victim.wait() == -signal.SIGKILL
    assert pipeline.database.count() == 1000  # committed …
    assert list(pipeline.pending().values()) == [2000]  # … and not acked, and the next block was read meanwhile

    survivor = pipeline.consumer("--drain", "--claim-idle", "0.5")
    assert survivor.wait() == 0
    assert "stopped: 1500 rows stored, 1000 duplicates, 0 dead letters" in survivor.said()
    assert pipeline.nothing_pending()
    pipeline.assert_stored_exactly(events)


def test_a_paused_consumer_that_wakes_up_after_its_block_was_claimed_doubles_nothing(pipeline: Pipeline) -> None:
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
    sleeper.wait_until_said("stored 0, there already 1000, dead letters 0")
    assert sleeper.stop() == 0
    pipeline.assert_stored_exactly(events)


def test_a_consumer_frozen_within_its_transaction_does_not_keep_the_others_waiting(pipeline: Pipeline) -> None:
    events = make_events(500)
    pipeline.append([*ticks(events, SESSION)])
    with pipeline.database.locked():
        frozen = pipeline.processes.start("python", "-c", SOON_TAKEN_FOR_FROZEN)
        wait_for(lambda: len(pipeline.database.waiting()) == 1)
        frozen.signal(signal.SIGSTOP)
    others = [pipeline.consumer("--claim-idle", "0.5") for _ in range(2)]
    pipeline.wait_until_stored(500)
    wait_for(pipeline.nothing_pending)
    frozen.signal(signal.SIGCONT)
    wait_for(lambda: "the database: " in frozen.said())
    assert [each.stop() for each in (frozen, *others)] == [0, 0, 0]
    pipeline.assert_stored_exactly(events)


def test_consumers_killed_five_times_at_random_lose_and_double_nothing(pipeline: Pipeline) -> None:
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
def test_recorded_prices_survive_five_kills_while_they_arrive(pipeline: Pipeline) -> None:
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


# What is away for a while.


def test_the_database_may_go_and_come_back(breakable_pipeline: Pipeline, tmp_path: Path) -> None:
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


def test_the_database_may_crash_and_come_back(breakable_pipeline: Pipeline) -> None:
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


def test_consumers_may_start_before_the_servers(breakable_pipeline: Pipeline) -> None:
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
def test_redis_may_go_and_come_back(breakable_pipeline: Pipeline, tmp_path: Path, crash: bool) -> None:
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


def test_what_a_producer_could_not_append_the_next_one_does(breakable_pipeline: Pipeline, tmp_path: Path) -> None:
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


# The end.


def test_a_producer_told_to_stop_flushes_and_says_its_last_number(pipeline: Pipeline) -> None:
    sent: list[Event] = []
    with Simulator(SimulatorConfig(rate=2000), journal=lambda _, event: sent.append(event)) as simulator:
        producer = pipeline.producer(simulator.url)
        wait_for(lambda: pipeline.appended() > 500)
        assert producer.stop(timeout=10) == 0
    story = pipeline.feed_entries()
    kinds = [event.event for event in story]
    assert (kinds[0], kinds[-1], kinds.count("stopped")) == ("started", "stopped", 1)
    assert [int(event.number) for event in story] == list(range(1, len(story) + 1))
    last = json.loads(story[-1].detail)["last_seq"]
    assert last == pipeline.appended()
    pipeline.drain()
    pipeline.assert_stored_exactly(sent[:last])  # what it had not read yet of the closed connection it never had
    assert pipeline.last_seqs() == [last]


def test_consumers_told_to_stop_finish_what_they_hold_and_leave(pipeline: Pipeline) -> None:
    events = make_events(3000)
    pipeline.append(list(ticks(events, SESSION)))
    with pipeline.database.locked():
        consumers = [pipeline.consumer("--max-batch-size", "700") for _ in range(2)]
        wait_for(lambda: len(pipeline.database.waiting()) == 2)
        wait_for(lambda: sorted(pipeline.pending().values()) == [1400, 1400], message="each has a block, and the next")
        for consumer in consumers:
            consumer.signal(signal.SIGTERM)
    assert [consumer.wait(timeout=10) for consumer in consumers] == [0, 0]
    assert pipeline.nothing_pending()
    assert pipeline.consumers() == set()
    pipeline.assert_stored_exactly(events[:2800])
    pipeline.drain()
    pipeline.assert_stored_exactly(events)


def test_a_consumer_told_to_stop_while_the_database_hangs_leaves_its_block_to_others(pipeline: Pipeline) -> None:
    assert app.STOP_WITHIN < 10
    events = make_events(100)
    pipeline.append(list(ticks(events, SESSION)))
    with pipeline.database.locked():
        consumer = pipeline.processes.start("python", "-c", SOON_GIVES_UP)
        wait_for(pipeline.database.waiting)
        assert consumer.stop() == 1
    assert consumer.last_log_line()[0].startswith("consumer: shutdown timed out: the database or Redis did not answer")
    assert list(pipeline.pending().values()) == [100]
    pipeline.drain()
    pipeline.assert_stored_exactly(events)


def test_a_second_signal_stops_at_once(pipeline: Pipeline) -> None:
    pipeline.append(list(ticks(make_events(100), SESSION)))
    with pipeline.database.locked():
        consumer = pipeline.consumer()
        wait_for(pipeline.database.waiting)
        consumer.signal(signal.SIGINT)
        # The first signal alone would end it with status 1, since the database does not answer.
        assert consumer.stop(PATIENCE) in {128 + signal.SIGINT, 128 + signal.SIGTERM}
    assert list(pipeline.pending().values()) == [100]


def test_a_signal_is_heard_whatever_the_main_thread_is_at(pipeline: Pipeline) -> None:
    process = pipeline.processes.start("python", "-c", SIGNALLED_WHILE_WAITING)
    assert process.wait() == 0


def test_drain_waits_for_what_a_killed_consumer_holds_and_claims_it(pipeline: Pipeline) -> None:
    events = make_events(1500)
    pipeline.append(list(ticks(events, SESSION)))
    pipeline.prices.ensure_group()
    assert len(pipeline.prices.read(300)) == 300  # what a consumer does before it is killed
    consumer = pipeline.consumer("--drain", "--claim-idle", "2")
    pipeline.hold_until_said(pipeline.prices, consumer, "drain: 300 entries pending on other consumers")
    assert pipeline.database.count() == 1200
    assert consumer.status is None
    assert consumer.wait() == 0
    assert pipeline.nothing_pending()
    pipeline.assert_stored_exactly(events)


def test_drain_waits_for_the_feed_too(pipeline: Pipeline, tmp_path: Path) -> None:
    with replay(write_capture(tmp_path / "capture.ndjson", make_events(10))) as simulator:
        producer = pipeline.producer(simulator.url)
        wait_for(lambda: pipeline.appended() == 10)
        assert producer.stop() == 0
    pipeline.feed.ensure_group()
    held = len(pipeline.feed.read(1000))
    assert held > 3
    consumer = pipeline.consumer("--drain", "--claim-idle", "2")
    pipeline.hold_until_said(pipeline.feed, consumer, f"drain: {counted(held, 'entry')} pending on other consumers")
    assert consumer.wait() == 0
    assert pipeline.last_seqs() == [10]


def test_drain_ends_at_once_on_streams_that_nobody_has_written(empty_pipeline: Pipeline) -> None:
    empty_pipeline.drain()
    assert empty_pipeline.database.count() == 0  # the schema is there, though


# Values that the database refuses.


def test_bad_entries_do_not_stop_the_good_ones(pipeline: Pipeline) -> None:
    events = make_events(1000)
    entries = [each._asdict() for each in ticks(events, SESSION)]
    entries[100]["price"] = "NaN"
    entries[500]["symbol"] = "x" * 65
    entries[999] = {"what": "is this?"}
    pipeline.prices.append(entries)
    consumer = pipeline.consumer("--drain")
    assert consumer.wait() == 0
    assert pipeline.database.count() == 997
    letters = pipeline.database.query("SELECT seq, reason FROM dead_letters ORDER BY entry_id")
    assert letters == [
        (101, "price is not a finite number: 'NaN'"),
        (501, f"symbol is not of 1 to 64 characters: '{'x' * 65}'"),
        (None, "its fields are not those of a tick: what"),
    ]
    assert pipeline.nothing_pending()


@pytest.mark.parametrize("digits", [19, 400, 5000])  # more than a float holds; more than Python makes a number of
def test_a_time_of_receipt_beyond_all_numbers_is_a_dead_letter_and_no_end(pipeline: Pipeline, digits: int) -> None:
    good = [*ticks(make_events(20), SESSION)]
    pipeline.append([good[0]._replace(received="9" * digits), *good[1:]])
    pipeline.drain()
    assert pipeline.database.count() == 19
    assert pipeline.database.query("SELECT seq FROM dead_letters") == [(1,)]


def test_a_row_that_fails_like_an_outage_is_found_while_the_database_works(fresh_pipeline: Pipeline) -> None:
    pipeline = fresh_pipeline
    pipeline.database.query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'too much for one page' USING ERRCODE = '54000'; END$$"
    )
    pipeline.database.query(
        "CREATE TRIGGER refuse BEFORE INSERT ON prices_real_time FOR EACH ROW "
        "WHEN (NEW.symbol = 'BAD') EXECUTE FUNCTION refuse()"
    )
    good = list(ticks(make_events(200), SESSION))
    bad = Tick(str(SESSION), "201", "BAD", "1760000000", "1", "", "", "", "", str(SESSION + 1000))
    pipeline.append([*good[:77], bad, *good[77:]])
    consumer = pipeline.consumer("--drain")
    assert consumer.wait() == 0
    assert "try 3, next in" in consumer.said()
    pipeline.assert_stored_exactly(make_events(200))
    letters = pipeline.database.query("SELECT seq, reason FROM dead_letters")
    assert [seq for seq, _ in letters] == [201]
    assert letters[0][1].startswith("too much for one page")
