"""Appends events to Redis in batches, or spools them if Redis does not accept them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from common import feed_event, tick
from common.errors import TickpipeError
from common.feed_event import FeedEvent
from common.streams.stream import Fields
from producer.feeds.vendor import Vendor
from producer.queue import EventQueue, Item
from producer.session import SPOOL_FULL, PriceEvent, overflow
from producer.spool import Outgoing, Spool, SpoolFullError
from producer.streams import Streams

logger = logging.getLogger("producer.publisher")

#: Seconds between two log lines on the same loss, or on the same lack of a second copy.
LOG_LOST_EVERY = 60.0


class Publisher:
    """Takes events from the queue, parses them and appends them. One thread runs it.

    While Redis is unavailable, everything goes to the spool. No event passes an earlier one that is spooled.
    """

    def __init__(
        self,
        queue: EventQueue,
        streams: Streams,
        spool: Spool,
        vendor: Vendor,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`monotonic` gives seconds."""
        self.appended = self.spooled = 0  # entries of both streams
        self.lost = 0  # prices
        self.refused, self.refused_at = "", float("-inf")  # the spool's last error and its time, monotonic seconds
        self._queue = queue
        self._streams = streams
        self._spool = spool
        self._vendor = vendor
        self._monotonic = monotonic
        self._before: dict[str, Fields | None] = {"prices": None, "feed": None}  # the last entry that was handed over
        self._held: deque[Outgoing] = deque(maxlen=10_000)  # feed events that even the spool could not take
        self._lost: list[tuple[PriceEvent, PriceEvent]] = []  # first and last of each unreported loss
        self._lost_logged_at = float("-inf")  # monotonic seconds; -inf if nothing was lost since Redis last accepted
        self._uncopied_logged_at = float("-inf")  # monotonic seconds

    def run(self) -> None:
        """Publish until the queue is closed and empty."""
        while (batch := self._queue.take(timeout=0.1)) is not None:
            if batch or self._held:
                self.publish(batch)
        if self._held or self._lost:
            self.publish([], last=True)

    def publish(self, items: Sequence[Item], *, last: bool = False) -> None:
        """Append the items, or spool them. `last`: no batch follows, so report losses now."""
        for part in _split_by_session(items):
            self._publish(part, last=last)

    def _publish(self, items: Sequence[Item], *, last: bool) -> None:
        entries = [*self._held, *map(self._outgoing, items)]
        if last or any(isinstance(item, FeedEvent) for item in items):
            entries += self._take_lost()  # a checkpoint must not be stored without the losses before it
        left, unconfirmed = self._append(entries)
        self._spool_copy(unconfirmed)
        if len(left) < len(entries) and self._lost_logged_at > float("-inf"):
            logger.warning("Redis accepts prices again: %d price events lost since the start", self.lost)
            self._lost_logged_at = float("-inf")
        try:
            if left:
                self._spool.put(left)
        except SpoolFullError as error:
            self._lose(items if any(entry.stream == "prices" for entry in left) else [], left, error)
        else:
            self._held.clear()
            self.spooled += len(left)
            for entry in left:
                self._before[entry.stream] = entry.fields

    def _append(self, entries: Sequence[Outgoing]) -> tuple[list[Outgoing], list[Outgoing]]:
        """Append the entries that need not wait for the spool. Returns the others, and those without a confirmation.

        Prices go first, so that a checkpoint never counts a price that is not in Redis yet. A price waits for spooled
        prices only, a feed event for all spooled entries. So a refused stream of feed events does not hold back prices.
        Entries in the spool that only wait for a confirmation hold back nothing. While there are any, the publisher
        does not wait for the replicas: the replay of the spool does.
        """
        left, unconfirmed = list(entries), []
        for stream in ("prices", "feed"):
            batch = [entry for entry in left if entry.stream == stream]
            if self._spool.not_appended("prices") or (stream == "feed" and self._spool.not_appended("feed")):
                break
            if not batch:
                continue
            fields, waits = [entry.fields for entry in batch], self._spool.waiting(stream) > 0
            try:
                confirmed = self._streams.append(stream, fields, after=self._before[stream], confirm=not waits)
            except TickpipeError as error:
                self._spool.forget_appended(stream)
                logger.warning("%s; spooling to %s", error, self._spool.path)
                break
            self._before[stream] = fields[-1]
            self.appended += len(batch)
            left = [entry for entry in left if entry.stream != stream]
            if not confirmed:
                unconfirmed += batch
                if not waits:
                    logger.warning("too few replicas confirmed in time; spooling to %s, too", self._spool.path)
        return left, unconfirmed

    def _spool_copy(self, entries: Sequence[Outgoing]) -> None:
        """Spool what Redis has appended, until replicas confirm it. A full spool loses none of it."""
        try:
            if entries:
                self._spool.put(entries, appended=True)
                self.spooled += len(entries)
        except SpoolFullError as error:
            if self._monotonic() - self._uncopied_logged_at >= LOG_LOST_EVERY:
                logger.error("%s: prices are in Redis, but have no second copy", error)
                self._uncopied_logged_at = self._monotonic()

    def _lose(self, items: Sequence[Item], entries: Sequence[Outgoing], error: SpoolFullError) -> None:
        """Count the prices among `items` as lost. Feed events are spooled together with the losses, or held."""
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
        if self._monotonic() - self._lost_logged_at >= LOG_LOST_EVERY:
            logger.error("%s: %d price events lost so far", error, self.lost)
            self._lost_logged_at = self._monotonic()

    def _outgoing(self, item: Item) -> Outgoing:
        """The item as a stream entry.

        Emits a feed event for the first price of each instrument in a session, with its number if it is a trade. It
        joins the end of the queue, so that the numbers of feed events stay in order.
        """
        if isinstance(item, FeedEvent):
            return Outgoing("feed", feed_event.encode(item))
        session, seq, received, event = item
        parsed = self._vendor.parse(event, session.id, seq, received)
        if (instrument := (parsed.symbol, parsed.exchange)) not in session.instruments:
            session.instruments.add(instrument)
            number = parsed.trade_id
            trade = {"trade_id": number} if number.isdecimal() and number.isascii() and len(number) <= 18 else {}
            session.emit("instrument", received, **self._vendor.instrument(event), **trade)
        return Outgoing("prices", tick.encode(parsed))

    def _take_lost(self) -> list[Outgoing]:
        """The overflow events of the unreported losses, which then count as reported."""
        events = [overflow(first, last, SPOOL_FULL) for first, last in self._lost]
        self._lost.clear()
        return [Outgoing("feed", feed_event.encode(event)) for event in events]


def _split_by_session(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The items in parts, each up to the beginning of a session.

    A part is appended before the next one. If the prices of a session came first, a kill could leave prices without a
    session.
    """
    start = 0
    for position, item in enumerate(items[:-1], 1):
        if isinstance(item, FeedEvent) and item.event == "started":
            yield items[start:position]
            start = position
    yield items[start:]
