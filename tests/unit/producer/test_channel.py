"""Several channels of one feed: each has numbers and sessions of its own."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from common.channels import Shard, channel_of
from producer.channel import Channels
from producer.config import FeedConfig
from producer.queue import EventQueue
from producer.session import PriceEvent

DAY = 86_400_000_000
NOW = 20_000 * DAY + DAY // 2
SYMBOLS = [f"S{number}" for number in range(20)]


def make(count: int, *, bound: int = 10**6, shard: Shard | None = None) -> tuple[Channels, list[EventQueue]]:
    queues = [EventQueue(bound) for _ in range(count)]
    return Channels(FeedConfig(shard=shard or Shard()), queues, lambda: NOW), queues


def events(queue: EventQueue) -> list[tuple[str, int, dict[str, Any]]]:
    """Kind, time and detail of each feed event."""
    found = [item for item in queue.take(timeout=0) or [] if not isinstance(item, PriceEvent)]
    return [(event.event, int(event.at), json.loads(event.detail)) for event in found]


@given(st.lists(st.sampled_from(SYMBOLS), max_size=50), st.integers(1, 9))
def test_each_channel_numbers_its_own_prices(symbols: list[str], count: int) -> None:
    channels, queues = make(count)
    channels.begin(NOW, SYMBOLS)
    for symbol in symbols:
        event = {"symbol": symbol}
        assert channels.of(event).put(event, NOW)
    expected = defaultdict(list)
    for symbol in symbols:
        expected[channel_of(symbol, count)].append(symbol)
    for number, queue in enumerate(queues):
        prices = [item for item in queue.take(timeout=0) or [] if isinstance(item, PriceEvent)]
        assert [price.event["symbol"] for price in prices] == expected[number]
        assert [price.seq for price in prices] == list(range(1, len(prices) + 1))
        assert len({price.session for price in prices}) <= 1


@given(st.integers(1, 8), st.integers(1, 5), st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_no_two_channels_of_any_shard_share_a_session(count: int, shards: int, delays: list[int]) -> None:
    """All producers begin new sessions at midnight, perhaps in the same microsecond."""
    found: list[int] = []
    for index in range(shards):
        channels, _ = make(count, shard=Shard(index, shards))
        channels.begin(NOW, [])
        found += [channel.session.id for channel in channels]
        for delay in delays:
            channels.roll_over(NOW + delay, [])
            ids = [channel.session.id for channel in channels]
            assert all(0 <= session - NOW - delay <= count * shards * (len(delays) + 1) for session in ids)
            found += ids
    assert len(set(found)) == len(found)


def test_events_of_the_connection_have_the_same_time_in_each_channel() -> None:
    channels, queues = make(3)
    channels.begin(NOW, SYMBOLS)
    channels.emit("connected", NOW + 5, host="x")
    channels.emit_symbols("subscribed", NOW + 6, SYMBOLS)
    channels.emit_symbols("refused", NOW + 7, {"S1": "no such symbol"})
    before = channels.began
    begin = channels.roll_over(NOW + 100, SYMBOLS)
    found = [events(queue) for queue in queues]
    for number, each in enumerate(found):
        mine = [symbol for symbol in SYMBOLS if channel_of(symbol, 3) == number]
        kinds = ["started", "connected", "subscribed", *(["refused"] if "S1" in mine else []), "stopped", "started"]
        assert [kind for kind, _, _ in each] == kinds
        assert (each[0][1], each[-2][1], each[-1][1]) == (before, begin, begin)
        assert sorted(each[0][2]["symbols"]) == sorted(each[2][2]["symbols"]) == sorted(mine)
        assert (each[0][2]["channel"], each[0][2]["channels"]) == (number, 3)
    assert len({each[-1][2]["first"] for each in found}) == 1


def test_single_channel_says_nothing_about_channels() -> None:
    channels, (queue,) = make(1)
    channels.begin(NOW, SYMBOLS)
    ((_, at, detail),) = events(queue)
    assert (at, channels.began) == (NOW, NOW)
    assert not detail.keys() & {"channel", "channels", "first"}


def test_events_without_a_usable_symbol_go_to_the_first_channel() -> None:
    channels, _ = make(4)
    first = next(iter(channels))
    unusable: list[dict[str, Any]] = [{}, {"symbol": None}, {"symbol": ["A"]}, {"symbol": {}}]
    for event in unusable:
        assert channels.of(event) is first


def test_full_queue_of_one_channel_does_not_stop_the_others() -> None:
    channels, queues = make(2, bound=3)
    channels.begin(NOW, SYMBOLS)
    one, other = (next(name for name in SYMBOLS if channel_of(name, 2) == number) for number in (0, 1))
    queues[0].take(timeout=0)
    queues[1].take(timeout=0)
    results = [channels.of({"symbol": one}).put({"symbol": one}, NOW) for _ in range(5)]
    assert results == [True, True, True, False, False]
    assert channels.above_watermark
    assert channels.of({"symbol": other}).put({"symbol": other}, NOW)
    channels.report_lost()
    ((kind, _, detail),) = events(queues[0])
    assert (kind, detail["first_seq"], detail["last_seq"]) == ("overflow", 4, 5)
    assert not events(queues[1])
