"""Channels and shards: every symbol belongs to exactly one of each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.channels import (
    Shard,
    channel_key,
    channel_keys,
    channel_number,
    channel_of,
    read_channels,
    read_shard,
)
from common.errors import ConfigurationError
from common.streams.keys import beside
from common.symbols import own_symbols

MANY = [f"SYM{number}" for number in range(10_000)]


def test_channel_is_the_crc_of_the_symbol() -> None:
    assert channel_of("", 7) == 0
    assert channel_of("123456789", 1 << 32) == 0xCBF43926  # the check value of CRC-32/ISO-HDLC


@given(st.text(max_size=20), st.integers(1, 256))
def test_listing_has_the_channel_of_its_symbol(symbol: str, count: int) -> None:
    assert 0 <= channel_of(symbol, count) < count
    assert channel_of(f"{symbol}:NASDAQ", count) == channel_of(symbol, count)


def test_keys_of_a_channel_are_in_one_slot() -> None:
    assert channel_keys("prices", 1) == ["prices"]
    assert channel_keys("prices", 2) == ["prices:{0}", "prices:{1}"]
    assert channel_keys("{prices}", 2) == ["prices:{0}", "prices:{1}"], "or all would be in one slot"
    assert beside("prices:{3}", "consumers") == "prices:{3}:consumers"


@given(st.text(min_size=1, max_size=8), st.integers(0, 255))
def test_channel_is_found_in_its_key(price_stream: str, channel: int) -> None:
    assert channel_number(price_stream, price_stream) is None
    assert channel_number(price_stream, channel_key(price_stream, channel)) == channel


@pytest.mark.parametrize("key", ["price", "prices:3", "prices:{x}", "prices:{3}:feed", "other:{3}"])
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="is not a channel"):
        channel_number("prices", key)


@pytest.mark.parametrize(
    ("text", "channels"), [("0", [0]), ("0-3,7", [0, 1, 2, 3, 7]), (" 2 , 1-2", [1, 2]), ("255", [255])]
)
def test_channels_are_read(text: str, channels: list[int]) -> None:
    assert read_channels(text) == channels


@pytest.mark.parametrize("text", ["", "3-1", "a", "1,,2", "256", "-1", "1-", "0-99999"])
def test_invalid_channels_are_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--partitions .* is not a channel"):
        read_channels(text)


def test_shard_is_read() -> None:
    assert read_shard("") == Shard()
    assert str(read_shard("2/5")) == "2/5"
    assert read_shard("2/5") == Shard(1, 5)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_each_symbol_is_in_one_shard_and_each_shard_uses_every_channel(count: int) -> None:
    shards = [Shard(index, count).own(MANY) for index in range(count)]
    assert sorted(symbol for shard in shards for symbol in shard) == sorted(MANY)
    for shard in shards:
        assert len(shard) == pytest.approx(len(MANY) / count, rel=0.1)
        assert {channel_of(symbol, 8) for symbol in shard} == set(range(8))


def test_shard_without_symbols_and_a_full_connection_are_refused() -> None:
    one = ["BTC/USD"]
    empty = next(index for index in range(3) if not Shard(index, 3).own(one))
    with pytest.raises(ConfigurationError, match=rf"--shard {empty + 1}/3 has none of the 1 symbol: use fewer shards"):
        own_symbols(one, Shard(empty, 3), 0)
    assert own_symbols(MANY, Shard(), 10_000) == MANY
    with pytest.raises(ConfigurationError, match=r"10000 symbols for one connection, .* is 9999: .*--shard 1/4"):
        own_symbols(MANY, Shard(), 9999)
