"""The bounded queue between the websocket's thread and the publisher."""

from __future__ import annotations

import logging
import queue

from common.feed_event import FeedEvent
from producer.session import PriceEvent

logger = logging.getLogger("producer.publisher")

Item = PriceEvent | FeedEvent

#: Most items in one append: beyond a thousand, pipelining gains nothing more.
MAX_APPEND = 1000


class EventQueue:
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
    def above_watermark(self) -> bool:
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
