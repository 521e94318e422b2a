"""The periodic work of a producer process, also while it waits for the lease.

It registers the channels, and appends the entries that dead producers left in their spools.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from common.errors import TickpipeError
from common.streams.registry import ChannelRegistry
from producer.config import ProducerConfig
from producer.delivery import open_streams
from producer.replay import replay_orphans
from producer.spool_folder import channel_folders, spool_files
from producer.streams import Streams

logger = logging.getLogger("producer.publisher")

#: Seconds between two rounds.
EVERY = 15.0


class Upkeep:
    """The periodic work. One thread runs it."""

    def __init__(self, config: ProducerConfig, registry: ChannelRegistry, stop: threading.Event) -> None:
        self._config = config
        self._registry = registry
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
            replay_orphans(folder, self._streams[key], self._stop)
