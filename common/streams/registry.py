"""The channels that producers have used: a set of the streams of prices, beside the one that a single channel uses.

Consumers and commands find the channels by it. A channel stays in it after `--partitions` has changed, so that its
entries are stored and its sessions are verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import cast

from common import rights
from common.channels import channel_number
from common.streams.keys import beside
from common.streams.stream import Stream


class ChannelRegistry:
    """The set of one price stream. Raises StreamOutageError, ConfigurationError."""

    def __init__(self, prices: Stream) -> None:
        """`prices`: the stream that a single channel uses."""
        self._prices = prices
        self._key = beside(prices.key, "channels")
        self._is_checked = False

    def add(self, keys: Sequence[str]) -> None:
        """Add streams of prices."""
        with self._prices.translated():
            self._prices.client.sadd(self._key, *keys)

    def found(self) -> list[str]:
        """The streams of prices of all channels.

        The single channel's is the first, if it exists or if it is the only one.
        """
        if not self._is_checked:
            self._prices.check_key(self._key, "set", rights.members(self._key))
            self._is_checked = True
        with self._prices.translated():
            members = cast("set[bytes]", self._prices.client.smembers(self._key))
        numbers = {}
        for member in members:
            key = member.decode(errors="replace")
            with suppress(ValueError):
                if (number := channel_number(self._prices.key, key)) is not None:
                    numbers[number] = key
        found = [numbers[number] for number in sorted(numbers)]
        return found if found and not self._prices.check() else [self._prices.key, *found]
