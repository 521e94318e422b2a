"""The consumer's loop: recover, claim, read, write, acknowledge.

It serves two streams: the prices and the feed events. An entry is acknowledged only after the commit of its row or dead
letter. If the consumer dies before, the entry stays pending. It is delivered again, to the same name at its next start
or to the consumer that claims it. Rows that exist already stay as they are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from common import settings
from common.errors import DatabaseOutageError, OutageError, StreamOutageError, TickpipeError
from common.formatting import counted
from common.number import to_bigint
from common.retry import retrying
from common.streams.stream import Entry
from consumer.liveness import Progress
from consumer.replay import Replayer, Route
from consumer.writer import Stored, Writer

logger = logging.getLogger("consumer.worker")

#: Failures of one batch, while the database answers, after which its rows are inserted one by one.
BISECT_AFTER = 3
#: Seconds between two housekeeping runs.
HOUSEKEEPING_EVERY = 10.0
#: Microseconds after which a consumer's last report is added to a sum. Each start has a new name.
REPORTS_KEPT = 3600_000_000
#: Seconds that acknowledged entries stay while the database may lack some of them.
KEEP_INCOMPLETE = 7 * 86_400.0
#: Seconds between two reads of the feed events while prices arrive.
FEED_EVERY = 0.2
#: Seconds after which an idle consumer without pending entries is removed from the group, at least.
REMOVE_IDLE_AFTER = 60.0


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """How the consumer behaves; times in seconds."""

    max_batch_size: int = settings.MAX_BATCH_SIZE
    claim_idle: float = settings.CLAIM_IDLE
    #: How long a read waits for the first entry. Feed events and claims are due in between.
    poll: float = 0.5
    drain: bool = False
    #: How long acknowledged entries stay in the streams, and the bytes of a stream above which they stay shorter.
    stream_keep: float = 0.0
    stream_keep_bytes: int = 0


@dataclass
class Totals:
    """What this worker has done with prices since its start; latencies in seconds."""

    stored: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    batches: int = 0
    latency_p50: float | None = None
    latency_p99: float | None = None


class Batch(NamedTuple):
    """A batch of prices that was stored.

    `seconds`: from the start of its transaction to the commit. `latency`: seconds from the receipt of its first entry
    to the commit; None if the entry does not say when it was received.
    """

    entries: int
    stored: Stored
    seconds: float
    latency: float | None


class Worker:
    """One consumer. `run` ends when `stop` is set. With `drain` it ends when the group has nothing left to do."""

    def __init__(
        self,
        routes: Sequence[Route],
        writer: Writer,
        config: WorkerConfig,
        *,
        stop: threading.Event,
        clock: Callable[[], int],
        replayer: Replayer | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        on_batch: Callable[[Batch], None] = lambda _: None,
    ) -> None:
        """The first of `routes` is the prices': reads wait on it. `clock` gives microseconds UTC, `monotonic` seconds.

        `on_batch` is called for each batch of prices after its commit.
        """
        self.totals = Totals()
        self.progress = Progress(monotonic)
        self._reported = Totals()
        self._statistics_errors: dict[str, str] = {}  # the last error of each task that fails
        self._routes = routes
        self._prices = routes[0].stream
        self._writer = writer
        self._replayer = replayer
        self._config = config
        self._stop = stop
        self._monotonic = monotonic
        self._clock = clock
        self._on_batch = on_batch
        self._next_claim = self._next_report = self._next_housekeeping = self._next_feed = self._next_check = 0.0
        self._latencies: list[float] = []
        self._complete = replayer is None  # whether the database has every acknowledged entry, as far as known
        self._failures, self._bisect = 0, False  # of the current batch
        self._retry = retrying(stop, logger, self._failed)  # made once, since it is a reference cycle

    def run(self) -> None:
        """Work. Raises OutageError if `stop` was set during an outage; then entries stay pending."""
        retry = retrying(self._stop, logger, self.progress.failed)
        while not self._stop.is_set():
            try:
                retry(self._recover)
                if self._work():
                    break
            except StreamOutageError as error:
                # A lost reply may have had entries: they are pending on this name now.
                logger.warning("%s; recovering", error)
                self.progress.failed(error)
        self._report()
        for route in self._routes:
            route.stream.leave()

    def _recover(self) -> None:
        """Create missing groups, then store the entries that are pending on this name."""
        for route in self._routes:
            route.stream.ensure_group()
            after = b"0"
            while entries := route.stream.read_own_pending(self._config.max_batch_size, after):
                logger.info("recovered: %s of %s", counted(len(entries), "pending entry"), route.stream.key)
                route.stream.ack(self._store_batch(route, entries))
                after = entries[-1].id

    def _work(self) -> bool:
        """Claim, read, write and acknowledge, until the stream is drained (True) or `stop` is set (False).

        After a full batch more entries wait: the next batch is read while this one is written. Committed entries are
        acknowledged in the same round trip as the next read.
        """
        count = self._config.max_batch_size
        block_ms = None if self._config.drain else int(self._config.poll * 1000)
        with ThreadPoolExecutor(1) as reader:
            entries: list[Entry] = []
            done: list[bytes] = []
            while not self._stop.is_set():
                self._run_periodic_tasks()
                if len(entries) == count:
                    ahead = reader.submit(self._prices.read, count, None, done)
                    done = self._store_batch(self._routes[0], entries)
                    entries = ahead.result()
                else:
                    done += self._store_batch(self._routes[0], entries)
                    entries = self._prices.read(count, block_ms, done)
                    done = []
                if self._config.drain and not entries and not done and self._drained():
                    return True
            self._prices.ack(done + self._store_batch(self._routes[0], entries))
        return False

    def _run_periodic_tasks(self) -> None:
        self.progress.made()
        now = self._monotonic()
        if now >= self._next_claim:
            self._claim()
        if now >= self._next_check:
            self._check_database()
        if now >= self._next_housekeeping:
            self._housekeeping()
        if now >= self._next_report:
            self._report()
        if now >= self._next_feed:
            self._next_feed = now + FEED_EVERY
            self._store_feed()

    def _store_feed(self) -> bool:
        """Store the entries of the other routes. Returns whether there were any."""
        found = False
        for route in self._routes[1:]:
            while entries := route.stream.read(self._config.max_batch_size):
                route.stream.ack(self._store_batch(route, entries))
                found = True
        return found

    def _check_database(self) -> None:
        """Store again what a new primary, or a restored database, lacks. Due after each outage, too."""
        self._next_check = self._monotonic() + 1.0  # also if a full Redis refuses to remember: trimming comes next
        if self._replayer:
            self._complete = False
            try:
                self._complete = self._replayer.check(self.progress.made)
            except DatabaseOutageError as error:
                logger.warning("%s; the timeline of the database is checked again", error)
                self.progress.failed(error)
        if self._complete:
            self._next_check = self._monotonic() + HOUSEKEEPING_EVERY

    def _claim(self) -> None:
        """Take over entries that have been pending on other consumers for `claim_idle`: those are dead, or hang."""
        self._next_claim = self._monotonic() + min(5.0, self._config.claim_idle / 2)
        for route in self._routes:
            for entries in route.stream.claim(int(self._config.claim_idle * 1000), self._config.max_batch_size):
                logger.info("claimed: %s of %s", counted(len(entries), "entry"), route.stream.key)
                route.stream.ack(self._store_batch(route, entries))

    def _housekeeping(self) -> None:
        """Trim the streams, and remove dead consumers and old reports. Several consumers may do it at once."""
        self._next_housekeeping = self._monotonic() + HOUSEKEEPING_EVERY
        keep = self._config.stream_keep
        if keep > 0 and self._prices.is_nearly_full():
            keep = 0.0
        elif keep > 0 and not self._complete:  # a replay needs the entries
            keep = KEEP_INCOMPLETE
        idle_ms = int(max(self._config.claim_idle * 2, REMOVE_IDLE_AFTER) * 1000)
        for route in self._routes:
            trimmed = route.stream.trim(keep, self._config.stream_keep_bytes)
            removed = route.stream.remove_idle_consumers(idle_ms)
            logger.debug(
                "housekeeping: %s of %s trimmed, %s removed",
                counted(trimmed, "entry"), route.stream.key, counted(removed, "consumer"),
            )  # fmt: skip
        self._keep_statistics("prune", lambda: self._prices.statistics.prune(self._clock() - REPORTS_KEPT))

    def _drained(self) -> bool:
        """Whether the group has nothing left to do. Waits for entries of dead consumers, and claims them when due."""
        if self._store_feed():
            return False
        pending = sum(route.stream.pending() for route in self._routes)
        if pending:
            logger.info("drain: %s pending on other consumers", counted(pending, "entry"))
            self._stop.wait(min(1.0, self._config.claim_idle / 2))
            self._next_claim = 0.0
        elif not self._complete:
            logger.info("drain: the entries of the streams are not all stored again yet")
            self._stop.wait(1.0)
        return pending == 0 and self._complete

    def _store_batch(self, route: Route, entries: Sequence[Entry]) -> list[bytes]:
        """Store a batch; returns the ids to acknowledge."""
        if not entries:
            return []
        batch = self._insert(route, entries)
        self.progress.made()
        logger.debug("stored: %d new, %d duplicates, %d dead letters", *batch.stored)
        if route is self._routes[0]:
            self._count(batch)
        return [entry.id for entry in entries]

    def _insert(self, route: Route, entries: Sequence[Entry]) -> Batch:
        """Insert the batch. Wait for the end of an outage; bisect a batch that fails while the database answers."""
        self._failures, self._bisect = 0, False

        def insert() -> Batch:
            began = self._monotonic()
            stored = self._writer.insert_batch(route.table, route.stream.key, entries, bisect=self._bisect)
            seconds = self._monotonic() - began
            received = received_at(entries[0])
            latency = None if received is None else (self._clock() - received) / 1e6
            return Batch(len(entries), stored, seconds, latency)

        return self._retry(insert)

    def _failed(self, error: OutageError) -> None:
        self.progress.failed(error)
        self._failures += 1
        self._next_check = 0.0
        self._bisect = self._failures >= BISECT_AFTER and self._writer.ping()

    def _count(self, batch: Batch) -> None:
        self.totals.stored += batch.stored.inserted
        self.totals.duplicates += batch.stored.duplicates
        self.totals.dead_letters += batch.stored.dead
        self.totals.batches += 1
        if batch.latency is not None:
            self._latencies.append(batch.latency)
        self._on_batch(batch)

    def _report(self) -> None:
        """Publish the totals if they have changed, about once a second."""
        self._next_report = self._monotonic() + 1.0
        if self.totals == self._reported:
            return
        if self._latencies:
            ordered = sorted(self._latencies)
            self.totals.latency_p50 = ordered[len(ordered) // 2]
            self.totals.latency_p99 = ordered[len(ordered) * 99 // 100]
            self._latencies.clear()
        if self._keep_statistics("publish", self._publish):
            self._reported = replace(self.totals)

    def _publish(self) -> None:
        self._prices.statistics.publish(self._prices.consumer, at=self._clock(), **asdict(self.totals))

    def _keep_statistics(self, name: str, task: Callable[[], object]) -> bool:
        """Run a task and return whether it succeeded. An error is logged once and does not stop the worker."""
        try:
            task()
        except TickpipeError as error:
            if str(error) != self._statistics_errors.get(name):
                logger.warning("consumer statistics not written: %s", error)
            self._statistics_errors[name] = str(error)
            return False
        self._statistics_errors.pop(name, None)
        return True


def received_at(entry: Entry) -> int | None:
    """When the producer received this price, microseconds UTC; None if the entry does not say."""
    return to_bigint((entry.fields or {}).get(b"received"))
