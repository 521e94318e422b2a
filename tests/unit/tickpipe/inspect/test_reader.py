"""The state of the pipeline over all channels."""

from __future__ import annotations

import fakeredis
import pytest
import redis

from common.channels import channel_key, feed_key
from common.errors import OutageError
from common.streams.channels import ChannelStreams
from common.streams.group import ConsumerGroup, Member
from common.streams.registry import ChannelRegistry
from tests.unit.conftest import StreamMaker
from tickpipe.inspect.reader import StatusReader, merged

NOW = 1_700_000_000_000_000
KEYS = [channel_key("prices", number) for number in range(3)]


@pytest.fixture
def channels(make_stream: StreamMaker, redis_client: redis.Redis) -> ChannelStreams:
    ChannelRegistry(make_stream()).add(KEYS)
    for number, key in enumerate(KEYS, 1):
        stream = make_stream(key)
        stream.append([{"seq": str(seq)} for seq in range(10 * number)])
        stream.ensure_group()
    assert redis_client.exists(*KEYS) == 3
    return ChannelStreams(make_stream, "prices")


def read(stream: ConsumerGroup, count: int) -> None:
    """Let the consumer "me" read entries, and acknowledge half of them."""
    entries = stream.read(count)
    stream.ack([entry.id for entry in entries[::2]])


def test_figures_are_sums_over_the_channels(channels: ChannelStreams, make_stream: StreamMaker) -> None:
    first, second, third = channels.prices()
    read(first, 10)
    read(second, 4)
    make_stream(KEYS[1], consumer="other").read(1)
    for stream, name, stored in ((first, "me", 5), (second, "me", 2), (second, "other", 1)):
        stream.statistics.publish(name, stored=stored, dead_letters=1, latency_p50=stored / 10, at=NOW)
    snapshot = StatusReader(channels, lambda: NOW, lambda: 0.0, began=0).read()
    assert (snapshot.received, snapshot.stored, snapshot.dead_letters) == (60, 8, 3)
    assert snapshot.latency_p50 == 0.5
    assert snapshot.backlog
    assert (snapshot.backlog.lag, snapshot.backlog.pending) == (45, 8)
    assert (snapshot.active_consumers, snapshot.idle_consumers) == (2, 0)
    assert [(each.name, each.pending) for each in snapshot.consumers] == [("me", 7), ("other", 1)]
    assert [snapshot.channels[key].lag for key in KEYS] == [0, 15, 30]
    assert snapshot.groups["g"].lag == 45
    assert (snapshot.note, snapshot.error) == ("", "")
    assert third.backlog().pending == 0


def test_sum_of_old_reports_counts_only_from_the_beginning(channels: ChannelStreams) -> None:
    stream = channels.prices()[0]
    stream.statistics.publish("old", stored=7, at=NOW - 10)
    stream.statistics.prune(NOW)
    assert StatusReader(channels, lambda: NOW, lambda: 0.0, began=0).read().stored == 7
    assert StatusReader(channels, lambda: NOW, lambda: 0.0, began=NOW - 20).read().stored == 0


def test_run_counts_what_all_channels_receive_from_its_start(channels: ChannelStreams) -> None:
    reader = StatusReader(channels, lambda: NOW, lambda: 0.0)
    reader.begin()
    assert (reader.received(), reader.left()) == (0, 60)
    channels.prices()[2].append([{"seq": "31"}])
    channels.feed()[0].append([{"number": "1"}])
    assert (reader.received(), reader.left()) == (1, 62)
    assert reader.read().received == 1


def test_outage_keeps_the_last_figures(channels: ChannelStreams, redis_server: fakeredis.FakeServer) -> None:
    reader = StatusReader(channels, lambda: NOW, lambda: 0.0, began=0)
    assert reader.read().received == 60
    redis_server.connected = False
    snapshot = reader.read()
    assert (snapshot.received, snapshot.stored_rate) == (60, 0.0)
    assert snapshot.redis_error.startswith("Redis: ")
    assert reader.received() == 0
    with pytest.raises(OutageError):
        reader.left()


def test_missing_stream_is_a_note(make_stream: StreamMaker) -> None:
    snapshot = StatusReader(ChannelStreams(make_stream, "prices"), lambda: NOW, lambda: 0.0, began=0).read()
    assert "there is no stream 'prices' in this Redis yet" in snapshot.note


def test_named_channels_replace_all(channels: ChannelStreams, make_stream: StreamMaker) -> None:
    assert [stream.key for stream in channels.all()] == [*KEYS, *map(feed_key, KEYS)]
    named = ChannelStreams(make_stream, "prices", [1])
    assert [stream.key for stream in named.all()] == ["prices:{1}", "prices:{1}:feed"]
    assert [stream.key for stream in named.both("prices:{2}")] == ["prices:{2}", "prices:{2}:feed"]


def test_consumer_is_active_if_it_reads_any_channel() -> None:
    assert merged([Member("a", 1, 9.0), Member("b", 0, 4.0), Member("a", 2, 0.1)]) == [
        Member("a", 3, 0.1),
        Member("b", 0, 4.0),
    ]
