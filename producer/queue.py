"""The bounded queue between the websocket's thread and the publisher."""

from __future__ import annotations

import queue

from common.feed_event import FeedEvent
from producer.session import PriceEvent

Item = PriceEvent | FeedEvent

#: Maximum number of items in a batch. Beyond 1,000 entries, pipelining gains nothing more.
MAX_APPEND = 1000


class EventQueue:
    """Events that the feed has received and the publisher has not taken yet. Any thread may put, one thread takes."""

    def __init__(self, bound: int) -> None:
        """`bound` is the maximum number of price events. Feed events are few and always accepted."""
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._bound = bound
        self._closed = False

    def put(self, item: PriceEvent) -> bool:
        """Add a price event. Returns False if the queue is full; the caller counts the loss."""
        if self._queue.qsize() >= self._bound:
            return False
        self._queue.put(item)
        return True

    def put_always(self, item: FeedEvent) -> None:
        """Add a feed event, even if the queue is full or closed."""
        self._queue.put(item)

    @property
    def above_watermark(self) -> bool:
        """Whether the queue is more than a tenth full, so that the publisher needs a moment."""
        return self._queue.qsize() > self._bound // 10

    def close(self) -> None:
        """Declare that the feed has ended."""
        self._queue.put(None)

    def take(self, timeout: float) -> list[Item] | None:
        """All waiting items, up to MAX_APPEND. Waits up to `timeout` seconds for the first one.

        Returns None once the queue is closed and empty.
        """
        batch: list[Item] = []
        try:
            item = self._queue.get(timeout=0 if self._closed else timeout)
            while True:
                if item is None:
                    self._closed = True
                else:
                    batch.append(item)
                    if len(batch) == MAX_APPEND:
                        return batch
                item = self._queue.get_nowait()
        except queue.Empty:
            return None if self._closed and not batch else batch
