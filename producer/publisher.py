"""Appends what the feed has received, in pipelined batches, and never blocks the feed.

While Redis is away everything goes to the spool, and nothing of a session passes the spool while it is not empty.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from common import feed_event, tick
from common.errors import TickpipeError
from common.feed_event import FeedEvent
from common.streams.stream import Fields, Stream
from producer.feeds import twelvedata
from producer.queue import EventQueue, Item
from producer.session import PriceEvent, overflow
from producer.spool import Outgoing, Spool, SpoolFullError

logger = logging.getLogger("producer.publisher")


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
    """Takes from the queue, appends to Redis, spools while Redis is away. `run` is one thread's work."""

    def __init__(
        self, queue: EventQueue, streams: Streams, spool: Spool, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.appended = 0
        self.spooled = 0
        self.lost = 0
        self.refused, self.refused_at = "", float("-inf")  # by the spool: its last words, and when
        self._queue = queue
        self._streams = streams
        self._spool = spool
        self._monotonic = monotonic
        self._held: deque[Outgoing] = deque(maxlen=10_000)  # feed events that even the spool could not take
        self._lost: list[tuple[PriceEvent, PriceEvent]] = []  # first and last of what was lost and not told yet
        self._last_reported_at = float("-inf")  # monotonic seconds; since Redis took prices last, nothing was lost

    def run(self) -> None:
        """Publish until the queue has ended."""
        while (batch := self._queue.take(timeout=0.1)) is not None:
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
        if len(left) < len(entries) and self._last_reported_at > float("-inf"):
            logger.warning("Redis takes prices again: %d price events lost since the start", self.lost)
            self._last_reported_at = float("-inf")
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
        if self._monotonic() - self._last_reported_at >= 60.0:
            logger.error("%s: %d price events lost so far", error, self.lost)
            self._last_reported_at = self._monotonic()

    def _take_lost(self) -> list[Outgoing]:
        told = [Outgoing("feed", feed_event.encode(overflow(first, last, "spool full"))) for first, last in self._lost]
        self._lost.clear()
        return told


def _outgoing(item: Item) -> Outgoing:
    if isinstance(item, FeedEvent):
        return Outgoing("feed", feed_event.encode(item))
    session, seq, received, event = item
    return Outgoing("prices", tick.encode(twelvedata.parse(event, session.id, seq, received)))
