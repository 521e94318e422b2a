"""What the consumer tells to Prometheus and to whoever asks for its health: docs/metrics.md."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import Metric
from prometheus_client.registry import Collector

from common.errors import DatabaseOutageError, TickpipeError
from common.metrics import Distribution, Health, metric
from common.settings import Secret
from common.streams.stream import Backlog, Entry, Stream
from consumer.store import PriceStore, Stored, received_at
from consumer.tables import PRICES, Table
from consumer.worker import Worker

#: Seconds between two looks at the backlog.
LOOK_EVERY = 1.0

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600]
_ENTRIES = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000]
_LATENCY = (
    "Seconds from a price's receipt to its commit. Every new row counts, each with the latency of its block's first "
    "entry: the longest in the block, so never less than its own where one producer writes."
)


class MeasuredStore(PriceStore):
    """A store that also measures what it stores: once a block of prices, after its commit."""

    def __init__(
        self, url: Secret, *, clock: Callable[[], int], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives microseconds UTC, `monotonic` seconds."""
        super().__init__(url)
        self._clock = clock
        self._monotonic = monotonic
        self._entries = Distribution("tickpipe_block_entries", "Entries in a block of prices.", _ENTRIES)
        self._seconds = Distribution("tickpipe_insert_seconds", "Seconds to store and commit such a block.", _SECONDS)
        self._latency = Distribution("tickpipe_latency_seconds", _LATENCY, _SECONDS)

    def insert_batch(self, table: Table, stream: str, entries: Sequence[Entry], *, bisect: bool = False) -> Stored:
        """As PriceStore's."""
        began = self._monotonic()
        stored = super().insert_batch(table, stream, entries, bisect=bisect)
        if table is PRICES:
            self._seconds.observe(self._monotonic() - began)
            self._entries.observe(len(entries))
            if (received := received_at(entries[0])) is not None:
                waited = (self._clock() - received) / 1e6
                self._latency.observe(max(0.0, waited), stored.inserted)  # two machines' clocks may differ
        return stored

    def measured(self) -> Iterator[Metric]:
        """What was measured so far."""
        return (each.metric() for each in (self._entries, self._seconds, self._latency))


class BacklogWatch:
    """Looks at the backlog now and then, so that a scrape never waits for Redis. `run` is one thread's work."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        """`streams` by the values of the label that tells them apart."""
        self.up = False
        self.seen: dict[str, Backlog] = {}  # the last
        self._streams = streams

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set."""
        self.look()
        while not stop.wait(LOOK_EVERY):
            self.look()

    def look(self) -> None:
        """Look once. Where Redis is away, what was seen last stays; the worker's log says why."""
        try:
            self.seen = {name: stream.backlog() for name, stream in self._streams.items()}
            self.up = True
        except TickpipeError:
            self.up = False


class ConsumerMetrics(Collector):
    """Reads what worker, store and watch have counted."""

    def __init__(self, worker: Worker, store: MeasuredStore, watch: BacklogWatch, *, unhealthy_after: float) -> None:
        """`unhealthy_after`: seconds without progress until the consumer is taken for stuck."""
        self._worker = worker
        self._store = store
        self._watch = watch
        self._unhealthy_after = unhealthy_after

    def health(self) -> Health:
        """Red while Redis or the database fails, and when the loop is stuck."""
        return Health(self._worker.progress.reasons(self._unhealthy_after))

    def collect(self) -> Iterator[Metric]:
        """The metrics, now."""
        totals, trouble, seen = self._worker.totals, self._worker.progress.trouble, self._watch.seen
        lag = {name: backlog.lag for name, backlog in seen.items()}
        pending = {name: backlog.pending for name, backlog in seen.items()}
        database_up = trouble is None or trouble.kind is not DatabaseOutageError
        yield metric("tickpipe_rows_stored_total", "Prices stored as new rows.", totals.stored)
        yield metric("tickpipe_duplicates_total", "Prices that came again and were stored already.", totals.duplicates)
        yield metric("tickpipe_dead_letters_total", "Prices that became dead letters.", totals.dead_letters)
        yield from self._store.measured()
        yield metric("tickpipe_lag_entries", "Entries that nobody in the group has read yet.", lag, "stream")
        yield metric("tickpipe_pending_entries", "Entries read by the group and not acknowledged.", pending, "stream")
        yield metric("tickpipe_redis_up", "1 where Redis answered the last look at the backlog.", self._watch.up)
        yield metric("tickpipe_database_up", "0 while a block waits for a database that is away.", database_up)
        yield metric("tickpipe_healthy", "1 while /healthz says 200, 0 while it says 503.", not self.health().reasons)
