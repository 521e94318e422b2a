"""The streams of all channels, each with its own Redis client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from common.channels import channel_key, feed_key
from common.settings import Secret
from common.streams.client import connect
from common.streams.group import ConsumerGroup
from common.streams.registry import ChannelRegistry


class ChannelStreams:
    """The streams of each channel that producers have used. `prices`, `feed` and `all` look for new channels each time.

    Only one thread may use an instance.
    """

    def __init__(
        self, open_stream: Callable[[str], ConsumerGroup], price_stream: str, only: Sequence[int] | None = None
    ) -> None:
        """`open_stream` gives the stream of a key, with its own client. `only`: these channels instead of all.

        `price_stream`: the stream of prices of a single channel.
        """
        self.only = only
        self._only_keys = [channel_key(price_stream, channel) for channel in only or ()]
        self.single = open_stream(price_stream)
        self._open = open_stream
        self._registry = ChannelRegistry(self.single)
        self._streams = {price_stream: self.single}

    @classmethod
    def of_group(
        cls, redis_url: Secret, price_stream: str, group: str, consumer: str, only: Sequence[int] | None = None
    ) -> Self:
        """The streams for this consumer of this group. Raises ConfigurationError for an invalid URL."""
        return cls(lambda key: ConsumerGroup(connect(redis_url, key), key, group, consumer), price_stream, only)

    def keys(self) -> Sequence[str]:
        """The keys of the streams of prices. Raises OutageError, ConfigurationError."""
        return self._registry.found() if self.only is None else self._only_keys

    def prices(self) -> list[ConsumerGroup]:
        """The streams of prices. Raises OutageError, ConfigurationError."""
        return [self.stream(key) for key in self.keys()]

    def feed(self) -> list[ConsumerGroup]:
        """The streams of feed events, in the same order. Raises OutageError, ConfigurationError."""
        return [self.stream(feed_key(key)) for key in self.keys()]

    def all(self) -> list[ConsumerGroup]:
        """All streams: those of prices first. Raises OutageError, ConfigurationError."""
        keys = self.keys()
        return [self.stream(key) for key in [*keys, *map(feed_key, keys)]]

    def both(self, key: str) -> tuple[ConsumerGroup, ConsumerGroup]:
        """The stream of prices with this key, and the stream of its feed events."""
        return self.stream(key), self.stream(feed_key(key))

    def stream(self, key: str) -> ConsumerGroup:
        """The stream of this key."""
        if key not in self._streams:
            self._streams[key] = self._open(key)
        return self._streams[key]
