"""Runs the producer: builds its parts, starts their threads and shuts them down in order."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait

from common import clock, metrics, process, threads
from common.errors import ConfigurationError, OutageError
from common.streams.client import TIMEOUT, connect
from common.streams.stream import Stream
from producer.config import ProducerConfig
from producer.feed import Feed
from producer.metrics import ProducerMetrics
from producer.publisher import Publisher
from producer.queue import EventQueue
from producer.replay import Replayer
from producer.spool import Spool, make_folder, spool_path
from producer.streams import Streams

logger = logging.getLogger("producer")

#: Seconds that a shutdown may take after SIGTERM.
STOP_WITHIN = 8.5


class Producer:
    """One run of the producer: the feed, the queue, the publisher, the spool and its replay."""

    def __init__(self, config: ProducerConfig, symbols: Sequence[str]) -> None:
        """Open a new spool. No thread is started yet."""
        self._config = config
        self._stop_replay = threading.Event()
        self._paths = {
            "direct": Streams(*_open_streams(config, config.append_timeout)),
            "spool": Streams(*_open_streams(config)),
            "orphan": Streams(*_open_streams(config)),
        }
        self._spool = Spool(spool_path(config.spool_folder, clock.microseconds()), max_bytes=config.spool_max)
        self._queue = EventQueue(config.queue_max)
        self._feed = Feed(
            config.feed, api_key=config.api_key, symbols=symbols, queue=self._queue, clock=clock.microseconds
        )
        self._publisher = Publisher(self._queue, self._paths["direct"], self._spool)
        self._replayer = Replayer(self._spool, self._paths["spool"], self._paths["orphan"], self._stop_replay)

    def serve_metrics(self, server: metrics.Server) -> None:
        """Answer /metrics and /healthz from now on."""
        collector = ProducerMetrics(
            self._feed, self._publisher, self._spool, self._paths, unhealthy_after=self._config.unhealthy_after
        )
        server.serve(collector, collector.health)

    def reread_symbols(self) -> None:
        """Subscribe what the configuration names now. After an error, the subscription stays as it is."""
        try:
            self._feed.set_symbols(self._config.symbols())
        except ConfigurationError as error:
            logger.error("SIGHUP: %s; the subscriptions are unchanged", error)

    def run(self, stop: threading.Event) -> None:
        """Receive and publish until `stop` is set or a thread ends. Raises the error of the thread, if any."""
        threads.spare_the_collector()
        receiving = threads.in_thread(self._feed.run, stop)
        publishing = threads.in_thread(self._publisher.run)
        replaying = [threads.in_thread(self._replayer.run), threads.in_thread(self._replayer.run_orphans)]
        everything = [receiving, publishing, *replaying]
        while not stop.wait(0.2) and not any(thread.done() for thread in everything):
            pass
        stop.set()
        self._shut_down(receiving, publishing, replaying)
        for thread in everything:
            if thread.done():
                thread.result()
        if not publishing.done():
            raise OutageError(
                "shutdown timed out: neither Redis nor the spool accepted the events in memory; they are lost"
            )

    def _shut_down(self, receiving: Future[None], publishing: Future[None], replaying: Sequence[Future[None]]) -> None:
        """End the threads upstream first, so that each hands over what it has. Takes up to STOP_WITHIN seconds."""
        until = time.monotonic() + STOP_WITHIN
        wait([receiving], timeout=STOP_WITHIN - 3.0)
        self._queue.close()
        wait([publishing], timeout=until - time.monotonic() - 1.0)
        while self._spool.entries and time.monotonic() < until - 0.5:
            time.sleep(0.05)
        self._stop_replay.set()
        wait(replaying, timeout=0.5)
        self._spool.close()
        logger.info(
            "stopped: %d price events received, %d entries appended, %d spooled (%d on disk now), %d price events lost",
            self._feed.received, self._publisher.appended, self._publisher.spooled, self._spool.entries,
            self._publisher.lost + self._feed.lost,
        )  # fmt: skip


def run(config: ProducerConfig, server: metrics.Server | None) -> None:
    """Run a producer until SIGTERM, SIGINT or the end of a thread.

    Raises ConfigurationError before any thread is started if the symbols, the folder or Redis need an operator.
    """
    symbols = config.symbols()
    streams = _open_streams(config)
    make_folder(config.spool_folder)
    _check_redis(streams)
    stop = process.stop_on_signals()
    producer = Producer(config, symbols)
    if server:
        producer.serve_metrics(server)
    if config.reread_symbols:
        signal.signal(signal.SIGHUP, lambda *_: producer.reread_symbols())
    producer.run(stop)


def _open_streams(config: ProducerConfig, timeout: float = TIMEOUT) -> tuple[Stream, Stream]:
    """The two streams on a Redis client of their own, which waits `timeout` seconds for an answer."""
    client = connect(config.redis_url, timeout=timeout)
    return Stream(client, config.price_stream), Stream(client, f"{config.price_stream}:feed")


def _check_redis(streams: Sequence[Stream]) -> None:
    """Refuse to start for a wrong login, right or key. An outage is not a reason: prices wait in the spool."""
    try:
        for stream in streams:
            stream.check_append()
    except OutageError as error:
        logger.warning("%s; prices wait in the spool until Redis is available", error)
