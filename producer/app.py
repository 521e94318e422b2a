"""Runs the producer: builds its parts, starts their threads and shuts them down in order."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

from common import clock, metrics, process, threads
from common.channels import stream_keys
from common.errors import ConfigurationError, OutageError
from common.streams.lease import Lease
from common.streams.registry import ChannelRegistry
from common.streams.stream import Fence, Stream
from producer.config import ProducerConfig
from producer.delivery import Delivery, open_stream
from producer.feed import Feed
from producer.metrics import ActiveProducer, ProducerMetrics
from producer.repair import Repair
from producer.spool_folder import channel_folder, make_folder
from producer.standby import Standby
from producer.upkeep import Upkeep

logger = logging.getLogger("producer")

#: Seconds that a shutdown may take after SIGTERM.
STOP_WITHIN = 8.5


class Producer:
    """One run of the producer: the feed, and the delivery of each channel."""

    def __init__(
        self,
        config: ProducerConfig,
        *,
        fence: Fence | None = None,
        on_fenced: Callable[[int], None] = lambda _: None,
        on_published: Callable[[], None] = lambda: None,
    ) -> None:
        """Open new spools. No thread is started yet.

        `fence`: the right of this run to append; `on_fenced` is called when it has ended, with the time (microseconds
        UTC). `on_published` is called when the feed has ended and Redis has all events; perhaps several times.
        """
        self._on_published = on_published
        self._deliveries = [
            Delivery(config, key, channel_folder(config.spool_folder, key, config.price_stream), fence, on_fenced)
            for key in config.keys
        ]
        self._feed = Feed(
            config.feed,
            api_key=config.api_key,
            symbols=config.symbols(),
            queues=[delivery.queue for delivery in self._deliveries],
            clock=clock.microseconds,
        )
        self._config = config

    def metrics(self, orphans: Callable[[], int]) -> ProducerMetrics:
        """The metrics and the health of this run. `orphans`: prices appended from spools of dead producers."""
        after = self._config.unhealthy_after
        return ProducerMetrics(self._feed, self._deliveries, orphans, unhealthy_after=after)

    def reread_symbols(self) -> None:
        """Subscribe what the configuration names now. After an error, the subscription stays as it is."""
        try:
            self._feed.set_symbols(self._config.symbols())
        except ConfigurationError as error:
            logger.error("SIGHUP: %s; the subscriptions are unchanged", error)

    def run(self, stop: threading.Event, fenced_since: Callable[[], int | None] = lambda: None) -> None:
        """Receive and publish until `stop` is set or a thread ends. Raises the error of the thread, if any.

        `fenced_since`: since when another producer is active, microseconds UTC; None if none is.
        """
        receiving = threads.in_thread(self._feed.run, stop)
        for delivery in self._deliveries:
            delivery.start()
        if self._config.repair:
            feed = self._feed
            repair = Repair(self._config.feed.vendor, lambda: (feed.connections, feed.numbers.gaps))
            threads.in_thread(repair.run, stop)
        publishing = [delivery.publishing for delivery in self._deliveries]
        everything = [receiving, *publishing, *(delivery.replaying for delivery in self._deliveries)]
        while not stop.wait(0.2) and not any(thread.done() for thread in everything):
            pass
        stop.set()
        self._shut_down(receiving, fenced_since)
        for thread in everything:
            if thread.done():
                thread.result()
        if not all(thread.done() for thread in publishing):
            raise OutageError(
                "shutdown timed out: neither Redis nor the spool accepted the events in memory; they are lost"
            )

    def _shut_down(self, receiving: Future[None], fenced_since: Callable[[], int | None]) -> None:
        """End the threads upstream first, so that each hands over what it has. Takes up to STOP_WITHIN seconds."""
        deliveries = self._deliveries
        until = time.monotonic() + STOP_WITHIN
        wait([receiving], timeout=STOP_WITHIN - 3.0)
        for delivery in deliveries:
            delivery.queue.close()
        wait([delivery.publishing for delivery in deliveries], timeout=until - time.monotonic() - 1.0)
        while self._spooled and fenced_since() is None and time.monotonic() < until - 0.5:
            if self._all_appended:
                self._on_published()
            time.sleep(0.05)
        for delivery in deliveries:
            delivery.stop_replay.set()
        wait([delivery.replaying for delivery in deliveries], timeout=0.5)
        if (since := fenced_since()) is not None:
            if doubled := sum(delivery.discard_doubled(since) for delivery in deliveries):
                logger.warning("discarded: %d price events that the active producer has received, too", doubled)
        elif self._all_appended:
            self._on_published()
        for delivery in deliveries:
            delivery.spool.close()
        publishers = [delivery.publisher for delivery in deliveries]
        logger.info(
            "stopped: %d price events received, %d entries appended, %d spooled (%d on disk now), %d price events lost",
            self._feed.received, sum(each.appended for each in publishers), sum(each.spooled for each in publishers),
            self._spooled, sum(each.lost for each in publishers) + self._feed.lost,
        )  # fmt: skip

    @property
    def _spooled(self) -> int:
        return sum(delivery.spool.entries for delivery in self._deliveries)

    @property
    def _all_appended(self) -> bool:
        return all(delivery.spool.all_appended for delivery in self._deliveries)


def run(config: ProducerConfig, server: metrics.Server | None) -> None:
    """Run a producer until SIGTERM, SIGINT or the end of a thread.

    Raises ConfigurationError before any thread is started if the symbols, the folder or Redis need an operator.
    """
    config.symbols()
    registry = ChannelRegistry(open_stream(config, config.price_stream))
    lease = _lease(config, registry) if config.lease else None
    for key in config.keys:
        make_folder(channel_folder(config.spool_folder, key, config.price_stream))
    _check_redis(config, registry, lease)
    stop, orphans_stop = process.stop_on_signals(), threading.Event()
    active = ActiveProducer(lease.holder if lease else None)
    if server:
        server.serve(active, active.health)
    if config.reread_symbols:
        signal.signal(signal.SIGHUP, lambda *_: active.reread_symbols())
    threads.spare_the_collector()
    upkeep = Upkeep(config, registry, orphans_stop)
    keeping = threads.in_thread(upkeep.run)
    try:
        if lease is None:
            producer = Producer(config)
            active.begin(producer.metrics(upkeep.appended), producer.reread_symbols)
            producer.run(stop)
        else:
            Standby(lease, _runner(config, upkeep.appended, active)).run(stop)
    finally:
        orphans_stop.set()
        wait([keeping], timeout=0.5)


def _runner(config: ProducerConfig, orphans: Callable[[], int], active: ActiveProducer) -> Callable[..., None]:
    """The function that runs a new producer behind a fence."""

    def run_behind(fence: Fence, stop: threading.Event, standby: Standby) -> None:
        producer = Producer(config, fence=fence, on_fenced=standby.on_fenced, on_published=standby.hand_over)
        active.begin(producer.metrics(orphans), producer.reread_symbols)
        try:
            producer.run(stop, lambda: standby.fenced_since)
        finally:
            active.end()

    return run_behind


def _lease(config: ProducerConfig, registry: ChannelRegistry) -> Lease:
    """The lease, on Redis clients that wait for a part of its lifetime only.

    Its fence is raised on all streams that a producer of this feed may append to, perhaps with other `--partitions`.
    """
    lifetime = config.lease or 0.0
    streams: dict[str, Stream] = {}

    def others() -> list[Stream]:
        keys = dict.fromkeys([config.price_stream, *config.keys, *registry.found()])
        for key in stream_keys(keys):
            if key not in streams and key != config.price_stream:
                streams[key] = open_stream(config, key, lifetime / 4)
        return list(streams.values())

    holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
    return Lease(open_stream(config, config.price_stream, lifetime / 4), others, config.feed.name, holder, lifetime)


def _check_redis(config: ProducerConfig, registry: ChannelRegistry, lease: Lease | None) -> None:
    """Refuse to start for a wrong login, right, key or server. After an outage, prices wait in the spool."""
    try:
        if config.partitions > 1:
            registry.add(config.keys)
        for key in stream_keys(config.keys):
            stream = open_stream(config, key)
            if config.confirmation or lease:
                stream.check_append_once(config.confirmation.replicas if config.confirmation else 0)
            else:
                stream.check_append()
        if lease:
            lease.check()
    except OutageError as error:
        logger.warning("%s; prices wait in the spool until Redis is available", error)
