"""Channels: a producer with `--partitions N` distributes its symbols over N pairs of streams. Pure.

Each channel has its own sequence numbers, so `tickpipe verify` checks each channel independently. With one channel the
streams are `prices` and `prices:feed`. With several, channel 3 has `prices:{3}` and `prices:{3}:feed`. The braces are a
hash tag of Redis Cluster: they put all keys of a channel into one slot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from zlib import crc32

from common.errors import ConfigurationError

#: Channels of one producer, at most. Each has connections and threads of its own.
MAX_CHANNELS = 256


def channel_of(symbol: str, count: int) -> int:
    """The channel of a symbol, if there are `count` channels. AAPL:NASDAQ has the channel of AAPL."""
    return crc32(symbol.partition(":")[0].encode(errors="surrogatepass")) % count


def channel_keys(price_stream: str, count: int) -> list[str]:
    """The streams of prices of `count` channels."""
    return [price_stream] if count == 1 else [channel_key(price_stream, channel) for channel in range(count)]


def channel_key(price_stream: str, channel: int) -> str:
    """The stream of prices of one of several channels.

    The channel is the hash tag. Braces in `price_stream` would put all channels into one slot, so they are removed.
    """
    return f"{re.sub('[{}]', '', price_stream)}:{{{channel}}}"


def channel_number(price_stream: str, key: str) -> int | None:
    """The channel of a stream of prices; None for the stream that a single channel uses.

    Raises ValueError if `key` is neither.
    """
    if key == price_stream:
        return None
    found = re.search(r":\{([0-9]{1,5})\}$", key)
    if not found or channel_key(price_stream, int(found[1])) != key:
        raise ValueError(f"{key!r} is not a channel of {price_stream!r}")
    return int(found[1])


def feed_key(prices_key: str) -> str:
    """The stream of feed events that belongs to a stream of prices."""
    return f"{prices_key}:feed"


def stream_keys(prices_keys: Iterable[str]) -> list[str]:
    """These streams of prices, each followed by the stream of its feed events."""
    return [key for prices in prices_keys for key in (prices, feed_key(prices))]


def read_channels(text: str) -> list[int]:
    """The channels in a list such as `0-3,7`, ascending. Raises ConfigurationError."""
    channels: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,5})(?:-([0-9]{1,5}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < MAX_CHANNELS:
            raise ConfigurationError(
                f"--partitions {text!r}: {part.strip()!r} is not a channel (0 to {MAX_CHANNELS - 1}) or a "
                "range of them. Example: 0-3,7"
            )
        channels.update(range(first, last + 1))
    return sorted(channels)


@dataclass(frozen=True)
class Shard:
    """One of `count` producers that share the symbols of one list. `index` counts from 0, the text form from 1."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    def own(self, symbols: Sequence[str]) -> list[str]:
        """The symbols of this shard, in their order. Each symbol belongs to exactly one shard."""
        return [symbol for symbol in symbols if _shard_of(symbol, self.count) == self.index]


def _shard_of(symbol: str, count: int) -> int:
    """The shard of a symbol. With the hash of `channel_of`, a shard could use only a part of its channels."""
    digest = blake2b(symbol.partition(":")[0].encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) % count


def read_shard(text: str) -> Shard:
    """The shard in a text such as `2/5`; the only one for an empty text. Raises ConfigurationError."""
    if not text:
        return Shard()
    found = re.fullmatch(r"\s*([0-9]{1,5})\s*/\s*([0-9]{1,5})\s*", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigurationError(f"--shard {text!r} is not a shard: write NUMBER/COUNT, from 1/5 to 5/5")
    return Shard(int(found[1]) - 1, int(found[2]))
