"""The channels that producers have used: a set in Redis that contains their streams of prices.

Consumers and commands read it to find the channels. A channel stays in the set after `--partitions` has changed, so
that its entries are stored and its sessions are verified. The stream of a single channel is not in the set.
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
    """The set that belongs to one price stream. Its methods raise StreamOutageError and ConfigurationError."""

    def __init__(self, prices: Stream) -> None:
        """`prices`: the stream of prices of a single channel; the set is a key beside it."""
        self._prices = prices
        self._key = beside(prices.key, "channels")
        self._is_checked = False

    def add(self, keys: Sequence[str]) -> None:
        """Add streams of prices."""
        with self._prices.translated(self._key):
            self._prices.client.sadd(self._key, *keys)

    def found(self) -> list[str]:
        """The streams of prices of all channels, in order.

        The stream of a single channel is the first, if it exists or if it is the only one.
        """
        if not self._is_checked:
            self._prices.check_key(self._key, "set", rights.members(self._key))
            self._is_checked = True
        with self._prices.translated(self._key):
            members = cast("set[bytes]", self._prices.client.smembers(self._key))
        numbers = {}
        for member in members:
            key = member.decode(errors="replace")
            with suppress(ValueError):
                if (number := channel_number(self._prices.key, key)) is not None:
                    numbers[number] = key
        found = [numbers[number] for number in sorted(numbers)]
        return found if found and not self._prices.check() else [self._prices.key, *found]
