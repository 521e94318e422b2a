"""The registry of channels."""

from __future__ import annotations

import redis

from common.streams.registry import ChannelRegistry
from common.streams.stream import Stream


def test_single_channel_is_found_without_any_entry(redis_client: redis.Redis) -> None:
    registry = ChannelRegistry(Stream(redis_client, "prices"))
    assert registry.found() == ["prices"]
    registry.add(["prices:{10}", "prices:{2}"])
    assert registry.found() == ["prices:{2}", "prices:{10}"]


def test_single_channel_stays_while_its_stream_exists(redis_client: redis.Redis) -> None:
    prices = Stream(redis_client, "prices")
    registry = ChannelRegistry(prices)
    registry.add(["prices:{0}"])
    prices.append([{"seq": "1"}])
    assert registry.found() == ["prices", "prices:{0}"]


def test_foreign_entries_are_ignored(redis_client: redis.Redis) -> None:
    registry = ChannelRegistry(Stream(redis_client, "prices"))
    redis_client.sadd(
        "{prices}:channels", "other:{1}", b"\xff", "prices:{1}:feed", "prices", "prices:{1}", "prices:{0}"
    )
    assert registry.found() == ["prices:{0}", "prices:{1}"]
