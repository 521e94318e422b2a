"""Several channels: each is complete by itself, whatever happens, and N may change."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import pytest

from common.channels import channel_key, channel_of, feed_key
from common.streams.group import ConsumerGroup, total
from tests.support.faults import FaultySimulator
from tests.support.pipeline import GROUP, Pipeline
from tests.support.processes import Running
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.listings import LISTINGS

#: Sessions with a price that was received while a later session of the same symbol had begun.
RECEIVED_TWICE = """
WITH spans AS (
    SELECT symbol, session, min(received_at) AS first, max(received_at) AS last FROM prices_real_time GROUP BY 1, 2
)
SELECT symbol FROM spans AS earlier JOIN spans AS later USING (symbol)
WHERE later.session > earlier.session AND later.first < earlier.last
"""
SYMBOLS = sorted(LISTINGS)[:40]


@pytest.fixture
def simulator() -> Iterator[FaultySimulator]:
    with FaultySimulator(SimulatorConfig(rate=500, seed=1)) as simulator:
        yield simulator


def streams(pipeline: Pipeline, count: int) -> list[ConsumerGroup]:
    return [ConsumerGroup(pipeline.redis, channel_key("prices", number), GROUP, "test") for number in range(count)]


def verified(pipeline: Pipeline, *options: str) -> list[dict[str, object]]:
    """The verdicts of `verify`, which must find each session sound."""
    verify = pipeline.processes.start("tickpipe", "verify", "--all", "--json", "--claim-idle", "0.5", *options)
    assert verify.wait() == 0, verify.said()
    found: list[dict[str, object]] = verify.json()
    return found


def stop_and_store(pipeline: Pipeline, producer: Running) -> list[dict[str, object]]:
    """Stop the producer, store everything and verify it. Checks that all that was received is stored."""
    assert producer.stop() == 0
    pipeline.drain()
    verdicts = verified(pipeline)
    assert {verdict["state"] for verdict in verdicts} == {"complete"}
    assert sum(pipeline.last_seqs()) == pipeline.database.count()
    return verdicts


def test_each_channel_is_complete_by_itself(pipeline: Pipeline, simulator: FaultySimulator) -> None:
    consumers = [pipeline.consumer() for _ in range(2)]
    producer = pipeline.producer(simulator.url, "--partitions", "4", symbols=SYMBOLS)
    pipeline.wait_until_stored(2000)
    verdicts = stop_and_store(pipeline, producer)
    assert len(verdicts) == 4
    for channel, stream in enumerate(streams(pipeline, 4)):
        assert stream.backlog().appended > 0
        found = {entry.fields[b"symbol"].decode() for entry in stream.scan(b"-", 1000) if entry.fields}
        assert {channel_of(symbol, 4) for symbol in found} == {channel}
    per_symbol = pipeline.database.query("SELECT symbol, count(DISTINCT session) FROM prices_real_time GROUP BY 1")
    assert {count for _, count in per_symbol} == {1}
    details = pipeline.feed_events("started")
    assert sorted(detail["channel"] for detail in details) == [0, 1, 2, 3]
    assert sorted(symbol for detail in details for symbol in detail["symbols"]) == sorted(SYMBOLS)
    assert [consumer.stop() for consumer in consumers] == [0, 0]


@pytest.mark.parametrize("counts", [(1, 4), (4, 1), (4, 2), (2, 5)], ids=lambda counts: f"{counts[0]} to {counts[1]}")
def test_another_number_of_channels_loses_nothing(
    pipeline: Pipeline, simulator: FaultySimulator, counts: tuple[int, int]
) -> None:
    """The first producer is killed while Redis refuses its prices: they wait in its spools."""
    consumer = pipeline.consumer()
    for count in counts:
        producer = pipeline.producer(simulator.url, "--partitions", str(count), symbols=SYMBOLS)
        stored = pipeline.database.count() + 500
        pipeline.wait_until_stored(stored)
        if count == counts[0]:
            pipeline.redis.config_set("maxmemory", 1)
            producer.wait_until_said("spooling to")
            producer.kill()
            pipeline.redis.config_set("maxmemory", 0)
    assert consumer.stop() in {0, 1}, "1 if Redis did not answer its last command in time: this server was just full"
    assert producer.stop() == 0
    pipeline.drain()
    verdicts = verified(pipeline)
    assert {verdict["state"] for verdict in verdicts} <= {"complete", "complete so far"}
    assert not any(pipeline.spool_folder().glob("**/*.spool"))


def test_spools_of_channels_that_redis_has_never_known_are_stored(
    pipeline: Pipeline, simulator: FaultySimulator
) -> None:
    """Redis is full for the whole life of the first producer, and the second one has a single channel."""
    pipeline.redis.config_set("maxmemory", 1)
    first = pipeline.producer(simulator.url, "--partitions", "3", symbols=SYMBOLS)
    first.wait_until_said("spooling to")
    assert first.stop() == 0
    pipeline.redis.config_set("maxmemory", 0)
    second = pipeline.producer(simulator.url, symbols=SYMBOLS)
    wait_for(lambda: second.said().count("spool adopted") == 3)
    wait_for(lambda: not any(pipeline.spool_folder().glob("channel-*/*.spool")))
    stop_and_store(pipeline, second)
    assert len(pipeline.feed_events("stopped")) == 4


def test_one_outage_of_the_connection_is_one_outage(pipeline: Pipeline, simulator: FaultySimulator) -> None:
    consumer = pipeline.consumer()
    producer = pipeline.producer(simulator.url, "--partitions", "4", symbols=SYMBOLS)
    pipeline.wait_until_stored(500)
    simulator.close_all(1012)
    wait_for(lambda: len(pipeline.feed_events("connected")) == 8)
    pipeline.wait_until_stored(pipeline.database.count() + 500)
    stop_and_store(pipeline, producer)
    outages = pipeline.database.query("SELECT cause, symbols FROM feed_outages WHERE until IS NOT NULL")
    assert [(cause.split(":")[0], sorted(symbols)) for cause, symbols in outages] == [("disconnected", sorted(SYMBOLS))]
    assert consumer.stop() == 0


def test_consumer_serves_the_named_channels_only(pipeline: Pipeline, simulator: FaultySimulator) -> None:
    named = pipeline.consumer("--partitions", "0,2-3")
    producer = pipeline.producer(simulator.url, "--partitions", "4", symbols=SYMBOLS)
    pipeline.wait_until_stored(500)
    assert producer.stop() == 0
    every = streams(pipeline, 4)
    wait_for(lambda: all(every[number].backlog().left == 0 for number in (0, 2, 3)))
    assert every[1].backlog().left == every[1].backlog().appended > 0
    assert named.stop() == 0
    assert len(verified(pipeline, "--partitions", "0,2-3")) == 3
    pipeline.drain()
    assert every[1].backlog().left == 0
    assert len(verified(pipeline)) == 4


def test_running_consumer_finds_new_channels(pipeline: Pipeline, simulator: FaultySimulator) -> None:
    consumer = pipeline.consumer()
    wait_for(lambda: "reads prices in the group" in consumer.said())
    producer = pipeline.producer(simulator.url, "--partitions", "3", symbols=SYMBOLS)
    pipeline.wait_until_stored(500)
    stop_and_store(pipeline, producer)
    assert consumer.stop() == 0


def test_killed_consumers_channels_are_claimed(pipeline: Pipeline, simulator: FaultySimulator) -> None:
    first, second = (pipeline.consumer("--claim-idle", "0.5") for _ in range(2))
    producer = pipeline.producer(simulator.url, "--partitions", "4", symbols=SYMBOLS)
    pipeline.wait_until_stored(500)
    with pipeline.database.locked():
        wait_for(lambda: total(stream.backlog() for stream in streams(pipeline, 4)).pending > 0)
        first.kill()
    pipeline.wait_until_stored(pipeline.database.count() + 500)
    stop_and_store(pipeline, producer)
    assert second.stop() == 0


def test_status_shows_each_channel_and_all(pipeline: Pipeline, simulator: FaultySimulator) -> None:
    producer = pipeline.producer(simulator.url, "--partitions", "3", symbols=SYMBOLS)
    wait_for(lambda: all(stream.backlog().appended for stream in streams(pipeline, 3)))
    assert producer.stop() == 0
    status = pipeline.processes.start("tickpipe", "status", "--json")
    assert status.wait() == 0, status.said()
    shown = status.json()
    appended = {stream.key: stream.backlog().appended for stream in streams(pipeline, 3)}
    assert {key: backlog["lag"] for key, backlog in shown["channels"].items()} == appended
    assert shown["backlog"] == sum(appended.values()) == shown["received"]
    plain = pipeline.processes.start("tickpipe", "status")
    assert plain.wait() == 0
    assert f"channel prices:{{1}}: {appended['prices:{1}']:,} unread, 0 pending" in plain.said()
    pipeline.drain()


def test_replay_and_repair_cover_all_channels(pipeline: Pipeline, simulator: FaultySimulator) -> None:
    consumer = pipeline.consumer("--stream-keep", "1h")
    producer = pipeline.producer(simulator.url, "--partitions", "3", symbols=SYMBOLS)
    pipeline.wait_until_stored(1000)
    stop_and_store(pipeline, producer)
    assert consumer.stop() == 0
    rows = pipeline.database.count()
    pipeline.database.query("DELETE FROM prices_real_time WHERE seq % 7 = 0")
    repair = pipeline.processes.start("tickpipe", "verify", "--all", "--repair", "--claim-idle", "0.5")
    assert repair.wait() == 0, repair.said()
    assert pipeline.database.count() == rows
    pipeline.database.query("TRUNCATE prices_real_time, feed_events, verified_sessions")
    replay = pipeline.processes.start("tickpipe", "replay", "--since", "1969-12-31")
    assert replay.wait() == 0, replay.said()
    assert pipeline.database.count() == rows
    assert {verdict["state"] for verdict in verified(pipeline)} == {"complete"}


def test_dead_letters_return_to_their_channel(pipeline: Pipeline, simulator: FaultySimulator) -> None:
    producer = pipeline.producer(simulator.url, "--partitions", "2", symbols=SYMBOLS)
    wait_for(lambda: all(stream.backlog().appended for stream in streams(pipeline, 2)))
    assert producer.stop() == 0
    bad = {"session": "1", "seq": "1", "symbol": "X" * 65, "time": "1", "price": "1", "received": "1"}
    streams(pipeline, 2)[1].append([bad])
    pipeline.drain()
    assert pipeline.database.query("SELECT stream FROM dead_letters") == [("prices:{1}",)]
    retry = pipeline.processes.start("tickpipe", "dead-letters", "retry")
    assert retry.wait() == 0, retry.said()
    assert streams(pipeline, 2)[1].backlog().left == 1
    pipeline.drain()
    assert pipeline.database.query("SELECT stream FROM dead_letters") == [("prices:{1}",)]


def test_shards_share_one_file_of_symbols(pipeline: Pipeline, simulator: FaultySimulator) -> None:
    file = pipeline.folder / "symbols.txt"
    file.write_text("\n".join(SYMBOLS))
    consumer = pipeline.consumer()
    producers = [
        pipeline.producer(
            simulator.url, "--symbols-file", str(file), "--shard", f"{number}/3", "--partitions", "2", symbols=()
        )
        for number in (1, 2, 3)
    ]
    pipeline.wait_until_stored(1000)
    assert [producer.stop() for producer in producers] == [0, 0, 0]
    pipeline.drain()
    assert {verdict["feed"] for verdict in verified(pipeline)} == {f"twelvedata {number}/3" for number in (1, 2, 3)}
    by_feed: dict[str, set[str]] = {}
    for detail in pipeline.feed_events("started"):
        by_feed.setdefault(detail["feed"], set()).update(detail["symbols"])
    assert sorted(symbol for symbols in by_feed.values() for symbol in symbols) == sorted(SYMBOLS)
    assert consumer.stop() == 0


def refused(pipeline: Pipeline, *options: str, symbols: Sequence[str] = SYMBOLS) -> str:
    producer = pipeline.producer("ws://127.0.0.1:1/", *options, symbols=symbols)
    assert producer.wait() == 2
    return producer.said().strip().splitlines()[-1]


def test_limits_of_the_plan_are_respected(pipeline: Pipeline) -> None:
    line = refused(pipeline, "--max-symbols-per-connection", "8")
    assert line.startswith("producer: 40 symbols for one connection, but --max-symbols-per-connection is 8: ")
    assert "--shard 1/10" in line


@pytest.mark.parametrize("shard", ["0/3", "4/3", "2", "1/3/5", "a/b"])
def test_invalid_shard_is_named(pipeline: Pipeline, shard: str) -> None:
    assert f"--shard '{shard}' is not a shard: write NUMBER/COUNT" in refused(pipeline, "--shard", shard)


def test_standby_producers_with_channels_double_nothing(pipeline: Pipeline, simulator: FaultySimulator) -> None:
    consumer = pipeline.consumer()
    options = ("--partitions", "3", "--standby", "--lease", "0.5")
    first = pipeline.producer(simulator.url, *options, symbols=SYMBOLS)
    wait_for(lambda: "active: this producer has the lease" in first.said())
    second = pipeline.producer(simulator.url, *options, symbols=SYMBOLS)
    pipeline.wait_until_stored(500)
    first.signal(signal.SIGSTOP)
    wait_for(lambda: "active: this producer has the lease" in second.said())
    pipeline.wait_until_stored(pipeline.database.count() + 500)
    first.signal(signal.SIGCONT)
    wait_for(lambda: "fenced: another producer" in first.said())
    pipeline.wait_until_stored(pipeline.database.count() + 500)
    assert (first.stop(), second.stop()) == (0, 0)
    pipeline.drain()
    verified(pipeline)
    assert not pipeline.database.query(RECEIVED_TWICE)
    keys = [key for stream in streams(pipeline, 3) for key in (stream.key, feed_key(stream.key))]
    assert len({pipeline.redis.hget(f"{key}:fence", "twelvedata") for key in keys}) == 1
    assert consumer.stop() == 0
