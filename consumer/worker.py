"""The consumer's loop: recover, claim, read, write, ack; on two streams, the prices and the feed's.

An entry is acked only after the commit of the transaction that stored it, or its dead letter. Whatever dies in
between leaves it pending, and it is delivered again: to this consumer's name at its next start, or to whoever claims
it. What was stored already then does nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from common.errors import OutageError, StreamOutageError, TickpipeError
from common.retry import retrying
from common.streams.stream import Entry, Stream
from consumer.liveness import Progress
from consumer.store import PriceStore, Stored, received_at
from consumer.tables import Table

logger = logging.getLogger("consumer.worker")

#: After so many failures of one block, while the database answers, its rows are tried one by one.
BISECT_AFTER = 3
#: Seconds between two rounds of housekeeping.
HOUSEKEEPING_EVERY = 10.0
#: Microseconds after which a consumer's last word is forgotten: names are new at each start.
REPORTS_KEPT = 7 * 86_400_000_000
#: Seconds between two looks at the feed's events, while prices come in.
FEED_EVERY = 0.2
#: Seconds of silence, at least, after which a consumer that holds nothing is taken off the group.
GONE_AFTER = 60.0


class Route(NamedTuple):
    """A stream and the table its entries go to."""

    stream: Stream
    table: Table


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """How the consumer behaves; times in seconds."""

    max_batch_size: int = 1000
    claim_idle: float = 30.0
    #: How long a read waits for the first entry; the feed's stream and the claims are looked at in between.
    poll: float = 0.5
    drain: bool = False


@dataclass
class Totals:
    """What this worker has done with the prices since it started; latencies in seconds."""

    stored: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    blocks: int = 0
    latency_p50: float | None = None
    latency_p99: float | None = None


class Worker:
    """One consumer. `run` until `stop` is set, or with `drain` until nothing is left for anybody in the group."""

    def __init__(
        self,
        lanes: Sequence[Route],
        store: PriceStore,
        config: WorkerConfig,
        *,
        stop: threading.Event,
        clock: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """The first of `lanes` is the prices', the one that reads wait on. `clock` gives microseconds UTC."""
        self.totals = Totals()
        self.progress = Progress(monotonic)
        self._reported = Totals()
        self._statistics_errors: dict[str, str] = {}  # by what failed; no entry since it succeeded
        self._lanes = lanes
        self._store = store
        self._config = config
        self._stop = stop
        self._monotonic = monotonic
        self._clock = clock
        self._next_claim = self._next_report = self._next_housekeeping = self._next_feed = 0.0
        self._latencies: list[float] = []
        self._failures, self._bisect = 0, False  # of the block that is being inserted
        self._retry = retrying(stop, logger, self._failed)  # once: each is a cycle of objects, for the collector

    def run(self) -> None:
        """Work. Raises OutageError where it was told to stop while something was away; then entries stay pending."""
        retry = retrying(self._stop, logger, self.progress.failed)
        while not self._stop.is_set():
            try:
                retry(self._recover)
                if self._work():
                    break
            except StreamOutageError as error:
                # What Redis may have handed us in a reply that never came is pending on our name: recover it.
                logger.warning("%s; recovering", error)
                self.progress.failed(error)
        self._report()
        for lane in self._lanes:
            lane.stream.leave()

    def _recover(self) -> None:
        """Groups where they are missing, then what this name was given before and did not ack."""
        for lane in self._lanes:
            lane.stream.ensure_group()
            after = b"0"
            while entries := lane.stream.read_own_pending(self._config.max_batch_size, after):
                logger.info("recovered %d pending entries of %s", len(entries), lane.stream.key)
                lane.stream.ack(self._store_batch(lane, entries))
                after = entries[-1].id

    def _work(self) -> bool:
        """Claim, read, write, ack. True when drained, False when told to stop.

        A full block says that more waits: then the next one is read while this one is written. What is committed is
        acked with the read after it, in one round trip.
        """
        prices, most = self._lanes[0].stream, self._config.max_batch_size
        block_ms = None if self._config.drain else int(self._config.poll * 1000)
        with ThreadPoolExecutor(1) as reader:
            entries: list[Entry] = []
            done: list[bytes] = []
            while not self._stop.is_set():
                self._run_periodic_tasks()
                if len(entries) == most:
                    ahead = reader.submit(prices.read, most, None, done)
                    done = self._store_batch(self._lanes[0], entries)
                    entries = ahead.result()
                else:
                    done += self._store_batch(self._lanes[0], entries)
                    entries = prices.read(most, block_ms, done)
                    done = []
                if self._config.drain and not entries and not done and self._drained():
                    return True
            prices.ack(done + self._store_batch(self._lanes[0], entries))
        return False

    def _run_periodic_tasks(self) -> None:
        self.progress.made()
        now = self._monotonic()
        if now >= self._next_claim:
            self._claim()
        if now >= self._next_housekeeping:
            self._housekeeping()
        if now >= self._next_report:
            self._report()
        if now >= self._next_feed:
            self._next_feed = now + FEED_EVERY
            self._store_feed()

    def _store_feed(self) -> bool:
        """Store what the other lanes have; False where there was nothing."""
        busy = False
        for lane in self._lanes[1:]:
            while entries := lane.stream.read(self._config.max_batch_size):
                lane.stream.ack(self._store_batch(lane, entries))
                busy = True
        return busy

    def _claim(self) -> None:
        """Take over what others were given and did not ack for `claim_idle`: they are dead, or as good as."""
        self._next_claim = self._monotonic() + min(5.0, self._config.claim_idle / 2)
        for lane in self._lanes:
            for entries in lane.stream.claim(int(self._config.claim_idle * 1000), self._config.max_batch_size):
                logger.info("claimed %d entries of %s", len(entries), lane.stream.key)
                lane.stream.ack(self._store_batch(lane, entries))

    def _housekeeping(self) -> None:
        """Trim what every group is done with, and take dead consumers' names off: harmless if all do it at once."""
        self._next_housekeeping = self._monotonic() + HOUSEKEEPING_EVERY
        for lane in self._lanes:
            trimmed = lane.stream.trim()
            gone = lane.stream.remove_idle_consumers(int(max(self._config.claim_idle * 2, GONE_AFTER) * 1000))
            logger.debug("trimmed %d entries of %s, removed %d consumers", trimmed, lane.stream.key, gone)
        self._keep_statistics("forget", lambda: self._lanes[0].stream.forget_reports(self._clock() - REPORTS_KEPT))

    def _drained(self) -> bool:
        """Whether nothing is left, for anybody. What a dead consumer holds is waited for, and claimed when due."""
        if self._store_feed():
            return False
        pending = sum(lane.stream.pending() for lane in self._lanes)
        if pending:
            logger.info("drain: %d entries are pending on other consumers", pending)
            self._stop.wait(min(1.0, self._config.claim_idle / 2))
            self._next_claim = 0.0
        return pending == 0

    def _store_batch(self, lane: Route, entries: Sequence[Entry]) -> list[bytes]:
        """Store a block; returns the ids to ack."""
        if not entries:
            return []
        stored = self._insert(lane, entries)
        self.progress.made()
        logger.debug("stored %d, there already %d, dead letters %d", *stored)
        if lane is self._lanes[0]:
            self._count(stored, entries)
        return [entry.id for entry in entries]

    def _count(self, stored: Stored, entries: Sequence[Entry]) -> None:
        self.totals.stored += stored.inserted
        self.totals.duplicates += stored.duplicates
        self.totals.dead_letters += stored.dead
        self.totals.blocks += 1
        received = received_at(entries[0])
        if received is not None:  # of the oldest tick in the block, the one that waited longest
            self._latencies.append((self._clock() - received) / 1e6)

    def _report(self) -> None:
        """Leave word of the totals, where they have changed, about once a second."""
        self._next_report = self._monotonic() + 1.0
        if self.totals == self._reported:
            return
        if self._latencies:
            ordered = sorted(self._latencies)
            self.totals.latency_p50 = ordered[len(ordered) // 2]
            self.totals.latency_p99 = ordered[len(ordered) * 99 // 100]
            self._latencies.clear()
        report = lambda: self._lanes[0].stream.report(**asdict(self.totals), at=self._clock())  # noqa: E731
        if self._keep_statistics("report", report):
            self._reported = replace(self.totals)

    def _keep_statistics(self, name: str, work: Callable[[], None]) -> bool:
        """Whether it succeeded. An error is logged once: prices are stored all the same."""
        try:
            work()
        except TickpipeError as error:
            if str(error) != self._statistics_errors.get(name):
                logger.warning("consumer statistics are not written: %s", error)
            self._statistics_errors[name] = str(error)
            return False
        self._statistics_errors.pop(name, None)
        return True

    def _insert(self, lane: Route, entries: Sequence[Entry]) -> Stored:
        """Insert the block however long the database is away; a block that fails while it is there is bisected."""
        self._failures, self._bisect = 0, False
        return self._retry(lambda: self._store.insert_batch(lane.table, lane.stream.key, entries, bisect=self._bisect))

    def _failed(self, error: OutageError) -> None:
        self.progress.failed(error)
        self._failures += 1
        self._bisect = self._failures >= BISECT_AFTER and self._store.works()
