"""The periodic work of a producer process, also while it waits for the lease.

It registers the channels, and appends the entries that dead producers left in their spools.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial

from common import clock
from common.errors import TickpipeError
from common.streams.registry import ChannelRegistry
from producer.config import ProducerConfig
from producer.delivery import open_stream, open_streams
from producer.replay import replay_orphans
from producer.spool import Spool
from producer.spool_folder import channel_folders, spool_files, taken_over
from producer.streams import Streams

logger = logging.getLogger("producer.publisher")

#: Seconds between two rounds.
EVERY = 15.0
#: Seconds after which a producer that became active without a price does not delay the spools of the earlier one.
FIRST_PRICE_WITHIN = 60.0


class UndecidedError(TickpipeError):
    """It is not known yet which prices of a spool another producer has received, too."""


class Upkeep:
    """The periodic work. One thread runs it."""

    def __init__(self, config: ProducerConfig, registry: ChannelRegistry, stop: threading.Event) -> None:
        self._config = config
        self._registry = registry
        self._prices = open_stream(config, config.price_stream)
        self._stop = stop
        self._streams: dict[str, Streams] = {}  # by stream of prices

    def appended(self) -> int:
        """The number of prices from spools of dead producers that Redis has acknowledged."""
        return sum(streams.appended for streams in list(self._streams.values()))

    def run(self) -> None:
        """Do one round now and every 15 seconds, until `stop` is set."""
        while True:
            if self._config.partitions > 1:
                self._register(self._config.keys)
            self._replay_orphans()
            if self._stop.wait(EVERY):
                return

    def _register(self, keys: Sequence[str]) -> bool:
        """Add channels to the registry, from which consumers find them. Repeated: a failover may lose them.

        Returns whether that succeeded.
        """
        try:
            self._registry.add(keys)
        except TickpipeError as error:
            logger.warning("channels not registered: %s", error)
            return False
        return True

    def _replay_orphans(self) -> None:
        """Of all channels that have a folder: `--partitions` may have been another one before.

        Such a channel is not in the registry if Redis was unavailable all the time.
        """
        for key, folder in channel_folders(self._config.spool_folder, self._config.price_stream).items():
            known = key in {self._config.price_stream, *self._config.keys}
            if not known and spool_files(folder) and not self._register([key]):
                continue
            if key not in self._streams:
                self._streams[key] = open_streams(self._config, key)
            replay_orphans(folder, self._streams[key], self._stop, partial(self._discard_doubled, self._streams[key]))

    def _discard_doubled(self, streams: Streams, spool: Spool) -> None:
        """Discard what its producer has received while another one was active.

        Raises OutageError, and UndecidedError as long as the other one has appended no price.
        """
        if (since := taken_over(self._prices, spool.path)) is None:
            return
        if (first := streams.first_received(since)) is not None:
            count = spool.discard_since(first)
            logger.warning("discarded: %d price events that the active producer has received, too", count)
        elif clock.microseconds() - since < FIRST_PRICE_WITHIN * 1e6:
            raise UndecidedError("another producer has become active, and has no price yet")
