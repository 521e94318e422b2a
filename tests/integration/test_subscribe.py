"""`db.subscribe()`: every tick once and in order: at the seam of past and present, after outages, for slow readers."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import pytest

import tickpipe
from common import tick
from common.channels import channel_key
from common.database.client import DatabaseClient
from common.errors import ConfigurationError, StreamOutageError
from common.streams.group import ConsumerGroup
from common.streams.registry import ChannelRegistry
from common.streams.stream import Entry
from common.streams.tail import StreamTail
from common.threads import in_thread
from consumer.tables import PRICES
from consumer.writer import Writer
from tests.support.capture import SESSION, make_events, ticks
from tests.support.pipeline import GROUP, Pipeline
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.client.subscription import Subscription
from tickpipe.client.tick import Tick

ALL = "2025-01-01"
SYMBOL = "BTC/USD"
EVENTS = make_events(6_000)


def written(session: int = SESSION, events: Sequence[dict[str, object]] = EVENTS) -> list[tick.Tick]:
    return list(ticks(events, session))


TICKS = written()
#: The numbers of the symbol that the tests follow.
EXPECTED = [int(each.seq) for each in TICKS if each.symbol == SYMBOL]


@contextmanager
def subscribed(pipeline: Pipeline, since: str | None = None, symbols: str | None = SYMBOL) -> Iterator[Subscription]:
    urls = pipeline.database.url, pipeline.servers.valkey.url
    with tickpipe.connect(*urls, environ={}) as db, db.subscribe(symbols, since) as subscription:
        yield subscription


def store_one_of_each_symbol(pipeline: Pipeline) -> None:
    """Store a tick of each symbol long before the others, so that the symbols are known."""
    earlier = [each._replace(session="1", time="1700000000") for each in written(events=EVENTS[:200])]
    pipeline.append(earlier)
    pipeline.drain()


def append_all(stream: ConsumerGroup, events: Sequence[tick.Tick], rng: random.Random) -> None:
    """Append as a producer whose replies get lost: it appends some batches twice. Trim stored entries at once."""
    position = 0
    while position < len(events):
        batch = [tick.encode(each) for each in events[position : position + rng.randrange(1, 60)]]
        for _ in range(rng.choice([1, 1, 1, 2])):
            stream.append(batch)
        position += len(batch)
        if rng.random() < 0.2:
            stream.trim(keep=0.0)


def numbers_until(subscription: Subscription, last: int) -> list[int]:
    """The numbers of the session, up to this one. Other sessions must not come, except the early one."""
    found = []
    for each in subscription:
        assert each.session in {1, SESSION}
        if each.session == SESSION:
            found.append(each.seq)
            if each.seq >= last:
                break
    return found


def by_session(found: Sequence[Tick]) -> dict[int, list[int]]:
    """The numbers of each session, in order."""
    return {session: [each.seq for each in found if each.session == session] for session in {e.session for e in found}}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("consumers", ["ahead", "behind"])
def test_each_tick_comes_once_wherever_the_subscription_begins(pipeline: Pipeline, consumers: str, seed: int) -> None:
    """Consumers that are behind store nothing before all is appended."""
    rng = random.Random(seed)
    store_one_of_each_symbol(pipeline)
    if consumers == "ahead":
        for _ in range(2):
            pipeline.consumer("--max-batch-size", "50")
    found: list[list[int]] = []

    def follow(since: str | None) -> None:
        with subscribed(pipeline, since) as subscription:
            found.append(numbers_until(subscription, EXPECTED[-1]))

    begins = sorted(rng.sample(range(1, len(TICKS) - 100), 5))
    followers = [in_thread(follow, ALL)]
    for begin, end in zip([0, *begins], [*begins, len(TICKS)], strict=True):
        append_all(pipeline.prices, TICKS[begin:end], rng)
        followers.append(in_thread(follow, ALL))
    if consumers == "behind":
        pipeline.drain()
    pipeline.prices.trim(keep=0.0)
    followers.append(in_thread(follow, ALL))
    for each in followers:
        each.result(PATIENCE)
    wrong = [numbers for numbers in found if numbers != EXPECTED]
    assert not wrong, [(len(numbers), sorted(set(EXPECTED) - set(numbers))[:9], numbers[:9]) for numbers in wrong]


def test_rows_that_were_stored_out_of_order_leave_no_gap(pipeline: Pipeline, store: DatabaseClient) -> None:
    """One consumer has not stored its batch yet, another has stored a later one."""
    store_one_of_each_symbol(pipeline)
    pipeline.append(TICKS)
    pipeline.prices.read(500)
    later = pipeline.prices.read(500)
    Writer(store).insert_batch(PRICES, "prices", later)
    pipeline.prices.ack([entry.id for entry in later])
    with subscribed(pipeline, ALL) as subscription:
        assert numbers_until(subscription, EXPECTED[-1]) == EXPECTED


def test_without_since_only_new_ticks_come(pipeline: Pipeline) -> None:
    store_one_of_each_symbol(pipeline)
    pipeline.append(TICKS[:1000])
    with subscribed(pipeline) as subscription:
        assert next(subscription.batches()) == []  # it has found the end of the stream
        pipeline.append(TICKS[1000:])
        assert numbers_until(subscription, EXPECTED[-1]) == [seq for seq in EXPECTED if seq > 1000]


def test_tick_has_the_values_of_its_row(pipeline: Pipeline) -> None:
    store_one_of_each_symbol(pipeline)
    with subscribed(pipeline, symbols=None) as subscription:
        next(subscription.batches())
        pipeline.append(TICKS[:300])
        live = list(islice(subscription, 300))
    pipeline.drain()
    pipeline.prices.trim(keep=0.0)
    with subscribed(pipeline, ALL, symbols=None) as subscription:
        stored = list(islice(subscription, 300))
    assert live == stored
    assert {type(each) for each in live} == {Tick}
    assert live[0].received_at.utcoffset() == live[0].time.utcoffset() is not None


def test_slow_reader_gets_what_was_trimmed_from_the_database(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    store_one_of_each_symbol(pipeline)
    with subscribed(pipeline) as subscription:
        next(subscription.batches())
        pipeline.append(TICKS[:500])
        found = [next(subscription).seq]
        pipeline.append(TICKS[500:5_000])
        pipeline.drain()
        assert pipeline.prices.trim(keep=0.0) > 4_000
        pipeline.append(TICKS[5_000:])
        assert found + numbers_until(subscription, EXPECTED[-1]) == EXPECTED
    assert "are gone before they were read: they come from the database" in caplog.text


def test_emptied_redis_leaves_no_gap(pipeline: Pipeline) -> None:
    """Such as a restart without its file, or a failover to an empty replica."""
    store_one_of_each_symbol(pipeline)
    with subscribed(pipeline) as subscription:
        next(subscription.batches())
        pipeline.append(TICKS[:500])
        found = [next(subscription).seq]
        pipeline.append(TICKS[500:3_000])
        pipeline.drain()
        pipeline.redis.flushall()
        pipeline.append(TICKS[3_000:])
        assert found + numbers_until(subscription, EXPECTED[-1]) == EXPECTED


def test_channels_are_followed_also_those_that_begin_later(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickpipe.client.live.LOOK_EVERY", 0.05)
    store_one_of_each_symbol(pipeline)
    streams = [ConsumerGroup(pipeline.redis, channel_key("prices", number), GROUP, "test") for number in range(3)]
    registry = ChannelRegistry(pipeline.prices)
    registry.add([stream.key for stream in streams[:2]])
    with subscribed(pipeline, ALL) as subscription:
        for number, stream in enumerate(streams[:2]):
            stream.append([tick.encode(each) for each in written(SESSION + number, EVENTS[:1000])])
        pipeline.drain()
        first = [next(subscription)]
        registry.add([streams[2].key])
        streams[2].append([tick.encode(each) for each in written(SESSION + 2, EVENTS[:1000])])
        wanted = [seq for seq in EXPECTED if seq <= 1000]
        found = first + list(islice(subscription, 3 * len(wanted) - 1))
    assert by_session(found) == {SESSION + number: wanted for number in range(3)}


def test_outages_of_both_servers_are_waited_for(breakable_pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    pipeline, found = breakable_pipeline, list[int]()
    store_one_of_each_symbol(pipeline)
    pipeline.append(TICKS[:1000])

    def follow(subscription: Subscription) -> None:
        for each in subscription:
            if each.session == SESSION:
                found.append(each.seq)
            if found and found[-1] == EXPECTED[-1]:
                break

    with subscribed(pipeline, ALL) as subscription:
        pipeline.servers.postgres.stop()
        reading = in_thread(follow, subscription)
        wait_for(lambda: "the database" in caplog.text, message="the outage is noticed")
        pipeline.servers.postgres.start()
        wait_for(lambda: found, message="the first ticks")
        pipeline.servers.valkey.stop()
        wait_for(lambda: "Redis" in caplog.text, message="the outage is noticed")
        pipeline.servers.valkey.start()
        pipeline.append(TICKS[1000:])
        reading.result(PATIENCE)
    assert found == EXPECTED


def test_redis_with_older_data_brings_nothing_of_the_past(pipeline: Pipeline) -> None:
    """Such as a failover to a replica that lacks the last entries. The producer appends those again."""
    store_one_of_each_symbol(pipeline)
    other = [each._replace(session=str(SESSION + 1)) for each in TICKS[:400]]
    pipeline.append(other)
    pipeline.append(TICKS[:400])
    entries = list(pipeline.prices.scan(b"-", 1000))
    with subscribed(pipeline) as subscription:
        next(subscription.batches())
        pipeline.append(TICKS[400:600])
        found = [next(subscription).seq]
        pipeline.redis.delete("prices")
        for each in entries[:-100]:
            pipeline.redis.xadd("prices", each.fields or {}, id=each.id)  # type: ignore[arg-type]
        pipeline.append(TICKS[300:])
        assert found + numbers_until(subscription, EXPECTED[-1]) == [seq for seq in EXPECTED if seq > 400]


def test_outage_of_one_channel_loses_nothing_of_another(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    store_one_of_each_symbol(pipeline)
    stream = ConsumerGroup(pipeline.redis, channel_key("prices", 1), GROUP, "test")
    ChannelRegistry(pipeline.prices).add([stream.key])
    failing, read = threading.Event(), StreamTail.read

    def fail(tail: StreamTail) -> list[Entry] | None:
        if tail.stream.key == stream.key and failing.is_set():
            failing.clear()
            raise StreamOutageError("an outage of the second channel")
        return read(tail)

    monkeypatch.setattr(StreamTail, "read", fail)
    with subscribed(pipeline) as subscription:
        next(subscription.batches())
        failing.set()
        pipeline.append(TICKS[:1000])
        stream.append([tick.encode(each) for each in written(SESSION + 1, EVENTS[:1000])])
        wanted = [seq for seq in EXPECTED if seq <= 1000]
        found = list(islice(subscription, 2 * len(wanted)))
    assert not failing.is_set()
    assert by_session(found) == {SESSION + number: wanted for number in range(2)}


def test_backfilled_trades_are_part_of_the_past(pipeline: Pipeline) -> None:
    """Their numbers are those of the exchange, so two symbols may have the same."""
    store_one_of_each_symbol(pipeline)
    pipeline.database.query(
        """
        INSERT INTO prices_real_time (time, symbol, price, received_at, session, seq, trade_id, source)
        SELECT at, symbol, 1, at, 0, 9 - n, 9 - n, 'backfill'
        FROM (SELECT timestamptz '2024-01-01 00:00:00+00' + n * interval '1 second' AS at, n, symbol
              FROM generate_series(1, 3) AS n, unnest(ARRAY['BTC/USD', 'ETH/USD']) AS symbol) AS trades
        """
    )
    with subscribed(pipeline, "2023-12-01", symbols=None) as subscription:
        found = [(each.seq, each.symbol) for each in islice(subscription, 6)]
    assert found == [(seq, symbol) for seq in (8, 7, 6) for symbol in ("BTC/USD", "ETH/USD")]


def test_async_iteration_loses_nothing_when_it_is_cancelled(pipeline: Pipeline) -> None:
    store_one_of_each_symbol(pipeline)
    pipeline.append(TICKS)

    async def follow() -> list[int]:
        found: list[int] = []
        with subscribed(pipeline, ALL) as subscription:
            while not found or found[-1] < EXPECTED[-1]:
                try:
                    async with asyncio.timeout(0.01):
                        async for each in subscription:
                            if each.session == SESSION:
                                found.append(each.seq)
                            if found and found[-1] == EXPECTED[-1]:
                                break
                except TimeoutError:
                    continue
        return found

    assert asyncio.run(follow()) == EXPECTED


def test_close_ends_a_wait_in_another_thread(pipeline: Pipeline) -> None:
    store_one_of_each_symbol(pipeline)
    with subscribed(pipeline) as subscription:
        waiting = in_thread(lambda: list(subscription))
        closing = threading.Timer(0.2, subscription.close)
        closing.start()
        waiting.result(PATIENCE)
        closing.join()


def test_unknown_symbol_is_refused(pipeline: Pipeline) -> None:
    store_one_of_each_symbol(pipeline)
    refused = pytest.raises(ConfigurationError, match=r"no prices of 'BTCUSD' are stored\. The nearest: BTC/USD")
    with refused, subscribed(pipeline, symbols="BTCUSD"):
        pass


def test_dead_letters_and_other_entries_are_passed_over(pipeline: Pipeline) -> None:
    store_one_of_each_symbol(pipeline)
    with subscribed(pipeline) as subscription:
        next(subscription.batches())
        good, other = TICKS[EXPECTED[0] - 1], TICKS[EXPECTED[1] - 1]
        pipeline.append([good._replace(price="NaN", seq="1")])
        pipeline.prices.append([{"something": "else"}, {"session": "x", "seq": "1"}])
        pipeline.append([other])
        assert next(subscription).seq == EXPECTED[1]
