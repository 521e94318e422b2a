"""Brings the events of one channel to its two streams: from the queue through the publisher, or through the spool."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from common import clock, threads
from common.channels import feed_key
from common.errors import OutageError
from common.streams.client import TIMEOUT, connect
from common.streams.stream import Fence, Stream
from producer.config import ProducerConfig
from producer.publisher import Publisher
from producer.queue import EventQueue
from producer.replay import Replayer
from producer.spool import Spool
from producer.spool_folder import spool_path
from producer.streams import Streams


class Delivery:
    """The queue, the publisher, the spool and its replay of one channel. `start` runs two threads."""

    publishing: Future[None]
    replaying: Future[None]

    def __init__(
        self, config: ProducerConfig, key: str, folder: Path, fence: Fence | None, on_fenced: Callable[[int], None]
    ) -> None:
        """Open a new spool in `folder`. `key`: the channel's stream of prices.

        `fence`: the right of this producer to append; None if it has no lease. `on_fenced` is called when another
        producer has become active, with the time in microseconds UTC.
        """
        self.paths = {
            "direct": open_streams(config, key, config.append_timeout, fence=fence, on_fenced=on_fenced),
            "spool": open_streams(config, key, fence=fence, on_fenced=on_fenced),
        }
        self.spool = Spool(
            spool_path(folder, clock.microseconds(), fence), max_bytes=config.spool_max // config.partitions
        )
        self.queue = EventQueue(max(1, config.queue_max // config.partitions))
        self.publisher = Publisher(self.queue, self.paths["direct"], self.spool, config.feed.vendor)
        self.stop_replay = threading.Event()
        self._replayer = Replayer(self.spool, self.paths["spool"], self.stop_replay)

    def start(self) -> None:
        """Start the threads. The publisher ends after the queue is closed, the replay after `stop_replay` is set."""
        self.publishing = threads.in_thread(self.publisher.run)
        self.replaying = threads.in_thread(self._replayer.run)

    def discard_doubled(self, since: int) -> int:
        """Discard spooled events that another producer, active since `since` (microseconds UTC), has received, too.

        Those are all events from its first price on. Returns the number of price events discarded. The earlier ones
        stay in the spool. They are appended later, as those of a dead producer, without a check of the fence. If the
        other one has no price yet, or Redis is unavailable, this is decided then.
        """
        try:
            first = self.paths["spool"].first_received(since)
        except OutageError:
            first = None
        return 0 if first is None else self.spool.discard_since(first)


def open_streams(
    config: ProducerConfig,
    key: str,
    timeout: float = TIMEOUT,
    *,
    fence: Fence | None = None,
    on_fenced: Callable[[int], None] = lambda _: None,
) -> Streams:
    """The stream of prices `key` and the stream of its feed events, each with its own Redis client.

    `timeout`: seconds that a client waits for a reply. If replicas must confirm, WAIT and WAITAOF add their time.
    """
    if config.confirmation:
        timeout += 2 * config.confirmation.timeout
    prices, events = (open_stream(config, each, timeout) for each in (key, feed_key(key)))
    return Streams(prices, events, fence=fence, confirm=config.confirmation, on_fenced=on_fenced)


def open_stream(config: ProducerConfig, key: str, timeout: float = TIMEOUT) -> Stream:
    """One stream with its own Redis client."""
    return Stream(connect(config.redis_url, key, timeout=timeout), key)
