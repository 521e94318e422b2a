"""Runs one consumer: connects its parts, starts its threads and ends them in time."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass, field

from common import clock, metrics, process, settings, threads
from common.database import migrations
from common.database.client import DatabaseClient
from common.errors import OutageError, TickpipeError
from common.formatting import counted
from common.retry import retrying
from common.settings import Secret
from common.streams.client import connect
from common.streams.group import ConsumerGroup
from consumer.metrics import BacklogMonitor, BatchMetrics, ConsumerMetrics
from consumer.tables import FEED, PRICES
from consumer.worker import Route, Worker, WorkerConfig
from consumer.writer import Writer

logger = logging.getLogger("consumer")

#: Seconds from SIGTERM to the end of the process.
STOP_WITHIN = 8.5
#: Seconds between two progress lines of `--drain` on a terminal.
PROGRESS_EVERY = 2.0


@dataclass(frozen=True, kw_only=True)
class ConsumerConfig:
    """What one consumer process serves. `unhealthy_after`: seconds without progress."""

    redis_url: Secret
    database_url: Secret
    name: str
    price_stream: str = settings.PRICE_STREAM
    group: str = settings.CONSUMER_GROUP
    unhealthy_after: float = settings.UNHEALTHY_AFTER
    worker: WorkerConfig = field(default_factory=WorkerConfig)

    @property
    def keys(self) -> dict[str, str]:
        """The streams' keys, by what they hold."""
        return {"prices": self.price_stream, "feed": f"{self.price_stream}:feed"}

    def streams(self) -> dict[str, ConsumerGroup]:
        """The streams, with a new client: a client's calls may hang, so each thread has its own."""
        client = connect(self.redis_url)
        return {what: ConsumerGroup(client, key, self.group, self.name) for what, key in self.keys.items()}


def run(config: ConsumerConfig, server: metrics.Server | None) -> None:
    """Consume until SIGTERM or Ctrl-C, or until the stream is drained. `server` serves metrics.

    Raises ConfigurationError, and OutageError if an outage keeps it from a clean end.
    """
    database = DatabaseClient(config.database_url)
    streams = config.streams()
    stop = process.stop_on_signals()
    batches = BatchMetrics()
    worker = Worker(
        [Route(streams["prices"], PRICES), Route(streams["feed"], FEED)],
        Writer(database),
        config.worker,
        stop=stop,
        clock=clock.microseconds,
        on_batch=batches.observe,
    )
    if server:
        monitor = BacklogMonitor(config.streams())
        collector = ConsumerMetrics(worker, batches, monitor, unhealthy_after=config.unhealthy_after)
        server.serve(collector, collector.health)
        threads.in_thread(monitor.run, stop)
    threads.spare_the_collector()
    # In a thread: a call that hangs in the database's library would keep the main thread from handling signals.
    working = threads.in_thread(_work, config, worker, database, streams, stop)
    _wait(config, worker, stop, working.done)
    stop.set()
    wait([working], timeout=STOP_WITHIN)
    totals = worker.totals
    logger.info(
        "stopped: %s stored, %s, %s, %s",
        counted(totals.stored, "row"), counted(totals.duplicates, "duplicate"),
        counted(totals.dead_letters, "dead letter"), counted(totals.batches, "batch"),
    )  # fmt: skip
    if not working.done():
        raise OutageError(
            "shutdown timed out: the database or Redis did not answer; another consumer will claim the pending entries"
        )
    working.result()


def _work(
    config: ConsumerConfig,
    worker: Worker,
    database: DatabaseClient,
    streams: dict[str, ConsumerGroup],
    stop: threading.Event,
) -> None:
    retry = retrying(stop, logger, worker.progress.failed)
    exists = retry(_check_redis, streams)
    retry(lambda: migrations.apply(database))
    retry(Writer(database).check_rights)
    new = "" if exists else ", a new stream: no producer has written to it yet"
    logger.info("started: %s reads %s in the group %s%s", config.name, config.price_stream, config.group, new)
    worker.run()


def _check_redis(streams: dict[str, ConsumerGroup]) -> bool:
    """Whether the prices' stream exists. Raises ConfigurationError for a key of another type or a missing right."""
    exists = {what: stream.check_consume() for what, stream in streams.items()}
    streams["prices"].statistics.check()
    return exists["prices"]


def _wait(config: ConsumerConfig, worker: Worker, stop: threading.Event, is_done: Callable[[], bool]) -> None:
    """Wait for a signal or the end of the work. On a terminal, log the progress of a drain."""
    show_progress = config.worker.drain and sys.stderr.isatty()
    streams = list(config.streams().values()) if show_progress else []
    began = last = time.monotonic()
    while not stop.wait(0.2) and not is_done():
        if show_progress and time.monotonic() - last > PROGRESS_EVERY:
            last = time.monotonic()
            _log_progress(worker, streams, last - began)


def _log_progress(worker: Worker, streams: Sequence[ConsumerGroup], seconds: float) -> None:
    """Log how far a drain is after this many seconds."""
    done = worker.totals.stored + worker.totals.duplicates + worker.totals.dead_letters
    with suppress(TickpipeError):  # in an outage, the worker logs the error
        left = sum(each.lag + each.pending for each in (stream.backlog() for stream in streams))
        time_left = left * seconds / max(done, 1)
        logger.info("drain: %d done, %d left, %.0f/s, about %.0f s left", done, left, done / seconds, time_left)
