"""Appends what the feed has received, in pipelined batches, and never blocks the feed.

While Redis is away everything goes to the spool, and nothing of a session passes the spool while it is not empty.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from common import feed_event, tick
from common.errors import TickpipeError
from common.feed_event import FeedEvent
from common.retry import retrying
from common.stream import Fields, Stream
from producer import twelvedata
from producer.session import PriceEvent, overflow
from producer.spool import Outgoing, Spool, SpoolFullError, adopt_orphans

logger = logging.getLogger("producer.publisher")

Item = PriceEvent | FeedEvent

#: Most items in one append: beyond a thousand, pipelining gains nothing more.
MAX_APPEND = 1000
#: Seconds between looks for spools that dead producers left.
ADOPT_EVERY = 15.0


class Intake:
    """Where the feed puts what it received and the publisher takes it. Bounded, and the bound is never silent."""

    def __init__(self, bound: int) -> None:
        """`bound`: most price events waiting; feed events, few, always pass."""
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._bound = bound
        self._ended = False

    def put(self, item: PriceEvent) -> bool:
        """Put a price event in; False where there is no room, and the caller counts the loss."""
        if self._queue.qsize() >= self._bound:
            return False
        self._queue.put(item)
        return True

    @property
    def crowded(self) -> bool:
        """Whether the publisher needs a moment: a tenth of the bound waits."""
        return self._queue.qsize() > self._bound // 10

    def put_always(self, item: FeedEvent) -> None:
        """Put a feed event in."""
        self._queue.put(item)

    def close(self) -> None:
        """Nothing more will be put in by the feed."""
        self._queue.put(None)

    def take(self, timeout: float) -> list[Item] | None:
        """All that has arrived, up to MAX_APPEND, waiting up to `timeout` seconds for the first; None at the end."""
        batch: list[Item] = []
        if self._ended:
            return None
        try:
            item = self._queue.get(timeout=timeout)
            while item is not None:
                batch.append(item)
                if len(batch) == MAX_APPEND:
                    return batch
                item = self._queue.get_nowait()
        except queue.Empty:
            return batch
        self._ended = True
        return batch


class Streams:
    """The two streams that entries go to."""

    def __init__(self, prices: Stream, feed: Stream) -> None:
        self._streams = {"prices": prices, "feed": feed}
        self.appended = 0  # prices that Redis has acknowledged

    def append(self, stream: str, entries: Sequence[Fields]) -> None:
        """Append the entries to one of them: each takes or refuses a batch for itself."""
        self._streams[stream].append(entries)
        if stream == "prices":
            self.appended += len(entries)


class Publisher:
    """Takes from the intake, appends to Redis, spools while Redis is away. `run` is one thread's work."""

    def __init__(
        self, intake: Intake, streams: Streams, spool: Spool, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.appended = 0
        self.spooled = 0
        self.lost = 0
        self.refused, self.refused_at = "", float("-inf")  # by the spool: its last words, and when
        self._intake = intake
        self._streams = streams
        self._spool = spool
        self._monotonic = monotonic
        self._held: deque[Outgoing] = deque(maxlen=10_000)  # feed events that even the spool could not take
        self._lost: list[tuple[PriceEvent, PriceEvent]] = []  # first and last of what was lost and not told yet
        self._told_at = float("-inf")  # monotonic seconds; since Redis took prices last, nothing was lost

    def run(self) -> None:
        """Publish until the intake has ended."""
        while (batch := self._intake.take(timeout=0.1)) is not None:
            if batch or self._held:
                self.publish(batch)
        if self._held or self._lost:
            self.publish([], last=True)

    def publish(self, items: Sequence[Item], *, last: bool = False) -> None:
        """Append the items, or spool them. `last`: no batch follows that could tell what was lost."""
        entries = [*self._held, *map(_outgoing, items)]
        if last or any(isinstance(item, FeedEvent) for item in items):
            entries += self._take_lost()  # no number may be vouched for before it is told that it was lost
        left = self._append(entries)
        if len(left) < len(entries) and self._told_at > float("-inf"):
            logger.warning("Redis takes prices again: %d price events lost since the start", self.lost)
            self._told_at = float("-inf")
        try:
            if left:
                self._spool.put(left)
        except SpoolFullError as error:
            self._lose(items if any(entry.stream == "prices" for entry in left) else [], left, error)
        else:
            self._held.clear()
            self.spooled += len(left)

    def _append(self, entries: Sequence[Outgoing]) -> list[Outgoing]:
        """Append the entries that need not wait for the spool; returns the others.

        Prices go first, so that an `alive` never names a price that is not there yet. A price waits for spooled
        prices only, a feed event for all. So a feed stream that Redis refuses holds back no price.
        """
        left = list(entries)
        try:
            for stream, ahead in (("prices", self._spool.waiting("prices")), ("feed", self._spool.entries)):
                batch = [entry.fields for entry in left if entry.stream == stream]
                if ahead:
                    break
                if batch:
                    self._streams.append(stream, batch)
                    self.appended += len(batch)
                    left = [entry for entry in left if entry.stream != stream]
        except TickpipeError as error:
            logger.warning("%s; spooling to %s", error, self._spool.path)
        return left

    def _lose(self, items: Sequence[Item], entries: Sequence[Outgoing], error: SpoolFullError) -> None:
        """Count what no place was left for. What is told of the feed takes what was lost with it, or both wait."""
        self.refused, self.refused_at = str(error), self._monotonic()
        for item in items:
            if isinstance(item, PriceEvent):
                self.lost += 1
                if self._lost and self._lost[-1][1].session is item.session and self._lost[-1][1].seq == item.seq - 1:
                    self._lost[-1] = (self._lost[-1][0], item)
                else:
                    self._lost.append((item, item))
        self._held.clear()
        if feed := [entry for entry in entries if entry.stream == "feed"]:
            feed += self._take_lost()
            try:
                self._spool.put(feed)
            except SpoolFullError:
                self._held.extend(feed)
        if self._monotonic() - self._told_at >= 60.0:
            logger.error("%s: %d price events lost so far", error, self.lost)
            self._told_at = self._monotonic()

    def _take_lost(self) -> list[Outgoing]:
        told = [Outgoing("feed", feed_event.encode(overflow(first, last, "spool full"))) for first, last in self._lost]
        self._lost.clear()
        return told


def _outgoing(item: Item) -> Outgoing:
    if isinstance(item, FeedEvent):
        return Outgoing("feed", feed_event.encode(item))
    session, seq, received, event = item
    return Outgoing("prices", tick.encode(twelvedata.parse(event, session.id, seq, received)))


def replay(spool: Spool, streams: Streams, stop: threading.Event) -> None:
    """Append what is in the spool, oldest first, until it is empty; waits for Redis as long as it takes.

    An entry whose append was not answered is appended again: the database knows it by its session and number. An
    acknowledged entry is dropped at once, even if the other stream refuses its entries for ever.
    Raises OutageError when told to stop before the end.
    """
    while spool.entries:
        retrying(stop, logger)(_replay_once, spool, streams, stop)
        if stop.is_set():
            return


def _replay_once(spool: Spool, streams: Streams, stop: threading.Event) -> None:
    """Append all prices, then the feed events that were there before: an `alive` comes after the prices it names."""
    mark, events = spool.head("feed", MAX_APPEND)
    while spool.waiting("prices"):
        price_mark, prices = spool.head("prices", MAX_APPEND)
        streams.append("prices", prices)
        spool.drop("prices", price_mark)
        if stop.is_set():
            return
    if events:
        streams.append("feed", events)
        spool.drop("feed", mark)


class Replayer:
    """Empties this producer's spool whenever it is not empty, and those that dead producers left, beside it."""

    def __init__(self, spool: Spool, streams: Streams, orphans: Streams, stop: threading.Event) -> None:
        """`orphans` are streams of their own client: each thread waits for Redis by itself."""
        self._spool = spool
        self._streams = streams
        self._orphans = orphans
        self._stop = stop

    def run(self) -> None:
        """Replay the live session's spool, until told to stop. One thread's work."""
        while not self._stop.wait(0.05):
            if self._spool.entries:
                count = self._spool.entries
                try:
                    replay(self._spool, self._streams, self._stop)
                except TickpipeError as error:  # an outage, or a login that is refused by now
                    logger.warning("%s", error)
                    self._stop.wait(5.0)  # the spool itself fails: without a pause its head would be appended in a loop
                else:
                    logger.info("Redis is back: the spool is replayed (%d entries or more)", count)

    def run_orphans(self) -> None:
        """Replay what dead producers left, now and every ADOPT_EVERY seconds. One thread's work."""
        while True:
            for spool in adopt_orphans(self._spool.path.parent, self._spool.path):
                try:
                    logger.info("adopted the spool %s: %d entries", spool.path, spool.entries)
                    replay(spool, self._orphans, self._stop)
                except TickpipeError as error:  # an outage, or a login that is refused by now
                    logger.warning("%s", error)
                finally:
                    spool.close()
            if self._stop.wait(ADOPT_EVERY):
                return


def spool_path(folder: Path, session: int) -> Path:
    """The spool file of the producer's run that began with this session."""
    return folder / f"{session}.spool"
