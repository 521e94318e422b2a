"""The workers of one consumer process: one for each channel, with its own connections."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from common import clock, settings, threads
from common.database import migrations
from common.database.client import DatabaseClient
from common.errors import TickpipeError
from common.retry import retrying
from common.settings import Secret
from common.streams.channels import ChannelStreams
from consumer.liveness import Progress
from consumer.replay import Replayer, Route, read_timeline
from consumer.tables import FEED, PRICES
from consumer.worker import Batch, Totals, Worker, WorkerConfig
from consumer.writer import Writer

logger = logging.getLogger("consumer")

#: Seconds between two searches for new channels.
SEARCH_EVERY = 1.0


@dataclass(frozen=True, kw_only=True)
class ConsumerConfig:
    """Settings of one consumer process. `unhealthy_after`: seconds without progress."""

    redis_url: Secret
    database_url: Secret
    name: str
    price_stream: str = settings.PRICE_STREAM
    #: None: all that producers have used.
    channels: Sequence[int] | None = None
    group: str = settings.CONSUMER_GROUP
    unhealthy_after: float = settings.UNHEALTHY_AFTER
    worker: WorkerConfig = field(default_factory=WorkerConfig)

    def streams(self) -> ChannelStreams:
        """The streams of all channels that this process serves, with new clients."""
        return ChannelStreams.of_group(self.redis_url, self.price_stream, self.group, self.name, self.channels)


class ChannelWorker:
    """Opens the connections of one channel's worker, checks them, and runs the worker.

    `key`: the channel's stream of prices.
    """

    def __init__(
        self, config: ConsumerConfig, key: str, stop: threading.Event, on_batch: Callable[[Batch], None]
    ) -> None:
        database = DatabaseClient(config.database_url)
        self._config = config
        self._key = key
        self._stop = stop
        self._prices, self._feed = config.streams().both(key)
        self._writer = Writer(database)
        routes = [Route(self._prices, PRICES), Route(self._feed, FEED)]
        self.worker = Worker(
            routes,
            self._writer,
            config.worker,
            stop=stop,
            clock=clock.microseconds,
            replayer=Replayer(
                routes, self._writer, lambda: read_timeline(database), config.worker.max_batch_size, stop
            ),
            on_batch=on_batch,
        )

    def run(self) -> None:
        """Work until `stop` is set, or until the channel is drained. Raises ConfigurationError, OutageError."""
        retry = retrying(self._stop, logger, self.worker.progress.failed)
        exists = retry(self._check_redis)
        retry(self._writer.check_rights)
        new = "" if exists else ", a new stream: no producer has written to it yet"
        logger.info("started: %s reads %s in the group %s%s", self._config.name, self._key, self._config.group, new)
        self.worker.run()

    def _check_redis(self) -> bool:
        """Check the keys and rights. Returns whether the stream of prices exists.

        Raises ConfigurationError for a key of another type or a missing right.
        """
        exists = self._prices.check_consume()
        self._feed.check_consume()
        self._prices.statistics.check()
        self._prices.check_replay()
        return exists


class Team:
    """Applies the schema, then runs a worker for each channel. Looks for new channels every second."""

    def __init__(self, config: ConsumerConfig, stop: threading.Event, on_batch: Callable[[Batch], None]) -> None:
        """`on_batch` is called for each batch of prices after its commit, from any thread."""
        self._config = config
        self._stop = stop
        self._on_batch = on_batch
        self._streams = config.streams()
        self._workers: dict[str, ChannelWorker] = {}  # by the channel's stream of prices
        self._running: list[Future[None]] = []
        self._progress = Progress()

    def run(self) -> None:
        """Work until `stop` is set, a worker fails, or all channels are drained.

        Raises ConfigurationError, OutageError.
        """
        retry = retrying(self._stop, logger, self._progress.failed)
        keys = retry(self._streams.keys)
        database = DatabaseClient(self._config.database_url)
        retry(lambda: migrations.apply(database))
        database.close()
        while not self._stop.is_set():
            for key in keys:
                if key not in self._workers:
                    self._start(key)
            if self._wait(SEARCH_EVERY):
                break
            with suppress(TickpipeError):  # the workers log an outage
                keys = self._streams.keys()
        for running in self._running:
            running.result()

    @property
    def totals(self) -> Totals:
        """The sums of all workers."""
        found = [each.worker.totals for each in list(self._workers.values())]
        return Totals(
            stored=sum(each.stored for each in found),
            duplicates=sum(each.duplicates for each in found),
            dead_letters=sum(each.dead_letters for each in found),
            batches=sum(each.batches for each in found),
        )

    @property
    def progress(self) -> list[Progress]:
        """The liveness of each loop."""
        return [self._progress, *(each.worker.progress for each in list(self._workers.values()))]

    def _start(self, key: str) -> None:
        self._workers[key] = ChannelWorker(self._config, key, self._stop, self._on_batch)
        self._running.append(threads.in_thread(self._workers[key].run))

    def _wait(self, seconds: float) -> bool:
        """Wait this long. Returns True earlier if all workers have ended, or if one has failed."""
        for _ in range(int(seconds / 0.1)):
            self._progress.made()
            done = [running for running in self._running if running.done()]
            if any(running.exception() for running in done) or len(done) == len(self._running):
                self._stop.set()
                return True
            if self._stop.wait(0.1):
                break
        return False
