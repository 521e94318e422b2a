"""The consumer's metrics and health: docs/metrics.md."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import Metric
from prometheus_client.registry import Collector

from common.errors import DatabaseOutageError, TickpipeError
from common.metrics import Distribution, Health, metric
from common.streams.channels import ChannelStreams
from common.streams.group import Backlog, total
from consumer.liveness import Progress
from consumer.worker import Batch, Totals

#: Seconds between two queries of the backlog.
BACKLOG_EVERY = 1.0

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600]
_ENTRIES = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000]
_LATENCY = (
    "Seconds from a price's receipt to its commit. Every new row counts, with the latency of the first entry in its "
    "batch. That is the longest in the batch if one producer writes."
)


class BatchMetrics:
    """Measures batches of prices after their commit. Any thread may observe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries = Distribution("tickpipe_batch_entries", "Entries in a batch of prices.", _ENTRIES)
        self._seconds = Distribution("tickpipe_insert_seconds", "Seconds to store and commit such a batch.", _SECONDS)
        self._latency = Distribution("tickpipe_latency_seconds", _LATENCY, _SECONDS)

    def observe(self, batch: Batch) -> None:
        """Count this batch."""
        with self._lock:
            self._seconds.observe(batch.seconds)
            self._entries.observe(batch.entries)
            if batch.latency is not None:
                self._latency.observe(max(0.0, batch.latency), batch.stored.inserted)  # two machines' clocks may differ

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        return (each.metric() for each in (self._entries, self._seconds, self._latency))


class BacklogMonitor:
    """Queries the backlog once a second, so that a scrape never waits for Redis. `run` is the work of one thread."""

    def __init__(self, streams: ChannelStreams) -> None:
        self.up = False
        self.backlogs: dict[str, Backlog] = {}
        self._streams = streams

    def run(self, stop: threading.Event) -> None:
        """Query until `stop` is set."""
        self.update()
        while not stop.wait(BACKLOG_EVERY):
            self.update()

    def update(self) -> None:
        """Query once. During an outage the last result stays, and the worker logs the error."""
        try:
            both = list(zip(*map(self._streams.both, self._streams.keys()), strict=True))
            self.backlogs = {
                label: total(stream.backlog() for stream in streams)
                for label, streams in zip(("prices", "feed"), both, strict=True)
            }
            self.up = True
        except TickpipeError:
            self.up = False


class ConsumerMetrics(Collector):
    """Reads the counts of batches and backlog, and the sums over the workers."""

    def __init__(
        self,
        totals: Callable[[], Totals],
        progress: Callable[[], Sequence[Progress]],
        batches: BatchMetrics,
        backlog: BacklogMonitor,
        *,
        unhealthy_after: float,
    ) -> None:
        """`totals`: of all workers. `unhealthy_after`: seconds without progress after which a loop counts as stuck."""
        self._totals = totals
        self._progress = progress
        self._batches = batches
        self._backlog = backlog
        self._unhealthy_after = unhealthy_after

    def health(self) -> Health:
        """Unhealthy during an outage of Redis or the database, and if a loop is stuck."""
        reasons = [reason for each in self._progress() for reason in each.reasons(self._unhealthy_after)]
        return Health(list(dict.fromkeys(reasons)))

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        totals, backlogs = self._totals(), self._backlog.backlogs
        outages = [each.outage for each in self._progress() if each.outage]
        lag = {name: backlog.lag for name, backlog in backlogs.items()}
        pending = {name: backlog.pending for name, backlog in backlogs.items()}
        database_up = all(outage.kind is not DatabaseOutageError for outage in outages)
        yield metric("tickpipe_rows_stored_total", "Prices stored as new rows.", totals.stored)
        yield metric("tickpipe_duplicates_total", "Prices delivered again and stored already.", totals.duplicates)
        yield metric("tickpipe_dead_letters_total", "Prices that became dead letters.", totals.dead_letters)
        yield from self._batches.collect()
        yield metric("tickpipe_lag_entries", "Entries that the group has not read yet.", lag, "stream")
        yield metric("tickpipe_pending_entries", "Entries read by the group and not acknowledged.", pending, "stream")
        yield metric("tickpipe_redis_up", "1 if Redis answered the last query of the backlog.", self._backlog.up)
        yield metric("tickpipe_database_up", "0 while a batch waits for the database in an outage.", database_up)
        yield metric("tickpipe_healthy", "1 while /healthz says 200, 0 while it says 503.", not self.health().reasons)
