"""A subscription: an iterator and an asynchronous iterator over live ticks, or over those of a replay."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Self

from common import clock
from common.database.client import DatabaseClient
from common.streams.channels import ChannelStreams
from tickpipe.client.live import LiveTicks
from tickpipe.client.servers import Servers
from tickpipe.client.tick import Tick


class Subscription(Iterator[Tick], AsyncIterator[Tick]):
    """Ticks as they arrive: `for tick in subscription`, or `async for tick in subscription`.

    It is also a context manager. One thread, or one task, may use it; `close` may be called from any.
    """

    def __init__(self, batches: Generator[list[Tick]], stop: threading.Event) -> None:
        """`stop`: the event that ends the batches."""
        self._batches = batches
        self._stop = stop
        self._ready: deque[Tick] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: asyncio.Future[list[Tick] | None] | None = None

    def batches(self) -> Iterator[list[Tick]]:
        """The ticks in batches, as they are read. A batch is empty if none came for a moment."""
        return self._batches

    def close(self) -> None:
        """End the iteration within a second, also one that waits in another thread."""
        self._stop.set()
        if self._thread:
            self._thread.submit(self._batches.close)
            self._thread.shutdown(wait=False)
        else:
            with suppress(ValueError):  # another thread waits in it, and is about to end
                self._batches.close()

    def __next__(self) -> Tick:
        while not self._ready:
            self._ready.extend(next(self._batches))
        return self._ready.popleft()

    async def __anext__(self) -> Tick:
        """A cancelled wait loses nothing: the next call takes the batch that was read in the meantime."""
        while not self._ready:
            if self._ahead is None:
                self._thread = self._thread or ThreadPoolExecutor(1, "tickpipe subscription")
                self._ahead = asyncio.get_running_loop().run_in_executor(self._thread, next, self._batches, None)
            batch = await asyncio.shield(self._ahead)
            self._ahead = None
            if batch is None:
                raise StopAsyncIteration
            self._ready.extend(batch)
        return self._ready.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def subscribe(
    servers: Servers,
    database: DatabaseClient,
    symbols: Collection[str] | None,
    since: datetime | None,
    stop: threading.Event,
) -> Subscription:
    """A subscription to the ticks of these symbols, or of all. Raises ConfigurationError for an invalid URL."""
    channels = ChannelStreams.of_group(servers.redis_url, servers.price_stream, servers.consumer_group, "client")
    live = LiveTicks(
        channels, database, None if symbols is None else frozenset(symbols), since,
        stop=stop, now=clock.utc, monotonic=time.monotonic,
    )  # fmt: skip
    return Subscription(live.batches(), stop)
