"""Runs one consumer process: starts its threads and ends them in time."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import suppress

from common import metrics, process, threads
from common.errors import OutageError, TickpipeError
from common.formatting import counted
from common.streams.channels import ChannelStreams
from consumer.metrics import BacklogMonitor, BatchMetrics, ConsumerMetrics
from consumer.team import ConsumerConfig, Team

logger = logging.getLogger("consumer")

#: Seconds from SIGTERM to the end of the process.
STOP_WITHIN = 8.5
#: Seconds between two progress lines of `--drain` on a terminal.
PROGRESS_EVERY = 2.0


def run(config: ConsumerConfig, server: metrics.Server | None) -> None:
    """Consume until SIGTERM or Ctrl-C, or until the streams are drained. `server` serves metrics.

    Raises ConfigurationError, and OutageError if an outage keeps it from a clean end.
    """
    stop = process.stop_on_signals()
    batches = BatchMetrics()
    team = Team(config, stop, batches.observe)
    if server:
        monitor = BacklogMonitor(config.streams())
        collector = ConsumerMetrics(
            lambda: team.totals, lambda: team.progress, batches, monitor, unhealthy_after=config.unhealthy_after
        )
        server.serve(collector, collector.health)
        threads.in_thread(monitor.run, stop)
    threads.spare_the_collector()
    # In a thread: a call that hangs in the database's library would keep the main thread from handling signals.
    working = threads.in_thread(team.run)
    _wait(config, team, stop, working.done)
    stop.set()
    wait([working], timeout=STOP_WITHIN)
    totals = team.totals
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


def _wait(config: ConsumerConfig, team: Team, stop: threading.Event, is_done: Callable[[], bool]) -> None:
    """Wait for a signal or the end of the work. On a terminal, log the progress of a drain."""
    show_progress = config.worker.drain and sys.stderr.isatty()
    streams = config.streams()
    began = last = time.monotonic()
    while not stop.wait(0.2) and not is_done():
        if show_progress and time.monotonic() - last > PROGRESS_EVERY:
            last = time.monotonic()
            _log_progress(team, streams, last - began)


def _log_progress(team: Team, streams: ChannelStreams, seconds: float) -> None:
    """Log how far a drain is after this many seconds."""
    totals = team.totals
    done = totals.stored + totals.duplicates + totals.dead_letters
    with suppress(TickpipeError):  # in an outage, the worker logs the error
        left = sum(stream.backlog().left for stream in streams.all())
        time_left = left * seconds / max(done, 1)
        logger.info("drain: %d done, %d left, %.0f/s, about %.0f s left", done, left, done / seconds, time_left)
