"""The lease of a feed: of several producers with one feed name, the holder of the lease is the active one.

The lease is a key in Redis that expires unless its holder renews it. A holder that is paused for longer may still
believe that it is active. So each active producer gets an epoch, which is greater than all earlier ones. A key beside
each stream, the fence, contains the newest epoch, and append_once.lua refuses a producer with an older one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from redis.exceptions import LockError
from redis.lock import Lock

from common import rights
from common.errors import ConfigurationError, FencedError
from common.streams.client import look_up_again
from common.streams.keys import beside
from common.streams.scripts import load_script
from common.streams.stream import Fence, Stream

#: Beginning of the fields of a fence that have the newest epochs of a feed. The other fields are names of feeds.
_EPOCHS = "\n"


def lease_key(price_stream: str, feed: str) -> str:
    """The key of the lease. Its value is the name of the active producer."""
    return beside(price_stream, f"lease:{feed}")


def feed_digest(feed: str) -> str:
    """A short name of a feed, for names of files and fields."""
    return hashlib.sha256(feed.encode(errors="surrogatepass")).hexdigest()[:8]


def next_epoch(prices: Stream, digest: str, epoch: int) -> int | None:
    """When the next producer became active after the one with this epoch, microseconds UTC; None if none did.

    `digest`: of the feed's name. Raises StreamOutageError, ConfigurationError.
    """
    epochs = (prices.recall("fence", _epochs_field(digest)) or "").split()
    return min((int(each) for each in epochs if each.isdecimal() and int(each) > epoch), default=None)


def _epochs_field(digest: str) -> str:
    return f"{_EPOCHS}{digest}"


def active_producers(prices: Stream) -> dict[str, str]:
    """The name of the active producer of each feed that has a lease now.

    Empty if the user lacks the right to read it. Raises StreamOutageError.
    """
    found: dict[str, str] = {}
    with suppress(ConfigurationError), prices.translated():
        for name in cast("dict[bytes, bytes]", prices.client.hgetall(beside(prices.key, "fence"))):
            feed = name.decode(errors="replace")
            if feed.startswith(_EPOCHS):
                continue
            if holder := cast("bytes | None", prices.client.get(lease_key(prices.key, feed))):
                found[feed] = holder.decode(errors="replace")
    return found


class Lease:
    """The lease of a feed, for one producer. Not for several threads at once."""

    def __init__(
        self, prices: Stream, others: Callable[[], Sequence[Stream]], feed: str, holder: str, lifetime: float
    ) -> None:
        """`holder`: a name that no other process has. `lifetime`: seconds.

        `prices`: the stream of prices of a single channel; the lease is a key beside it. `others`: all other streams
        that a producer of this feed may append to.
        """
        self.lifetime = lifetime
        self._prices, self._others = prices, others
        self._feed, self._holder = feed, holder
        self._key = lease_key(prices.key, feed)
        self._fence = beside(prices.key, "fence")
        self._lock = Lock(prices.client, self._key, timeout=lifetime, thread_local=False)
        self._claim = load_script(prices.client, "claim")

    def check(self) -> None:
        """Check the keys and rights. Raises ConfigurationError for a missing right, StreamOutageError."""
        self._prices.check_key(self._prices.key, "stream", rights.scan(self._prices.key))
        self._prices.check_key(self._key, "string", rights.lock(self._key))
        for stream in (self._prices, *self._others()):
            fence = beside(stream.key, "fence")
            stream.check_key(fence, "hash", {**rights.remember(fence), **rights.now()})

    def holder(self) -> str | None:
        """The name of the active producer; None if there is none. Raises StreamOutageError."""
        with self._prices.translated(self._key):
            found = cast("bytes | None", self._prices.client.get(self._key))
        return None if found is None else found.decode(errors="replace")

    def acquire(self) -> Fence | None:
        """Become the active producer, unless another one is. Returns its fence, or None. Raises StreamOutageError."""
        if self.holder():
            return None
        _look_up_again(self._prices)
        with self._prices.translated(self._key):
            if not self._lock.acquire(blocking=False, token=self._holder):
                return None
            arguments = [self._holder, self._feed, _epochs_field(feed_digest(self._feed))]
            claimed = cast("Any", self._claim(keys=[self._key, self._fence], args=arguments))
        fence = Fence(self._feed, int(claimed))
        if not fence.epoch:  # paused for longer than the lease since the line above
            return None
        epochs = [self._raise(stream, fence) for stream in self._others()]
        return fence if all(epoch == fence.epoch for epoch in epochs) else None

    def renew(self, fence: Fence) -> None:
        """Renew the lease. If a failover of Redis has lost the lease or the fence, take it again.

        Raises FencedError if another producer is active, StreamOutageError.
        """
        _look_up_again(self._prices)
        with self._prices.translated(self._key):
            try:
                self._lock.reacquire()
            except LockError:
                if not self._lock.acquire(blocking=False, token=self._holder):
                    raise FencedError(max(self._epoch(), fence.epoch + 1)) from None
        if (epoch := self._epoch()) > fence.epoch:
            self.release()
            raise FencedError(epoch)
        if epoch < fence.epoch:
            for stream in (self._prices, *self._others()):
                self._raise(stream, fence)

    def release(self) -> None:
        """Let another producer become active at once. Raises StreamOutageError."""
        with self._prices.translated(self._key):
            try:
                self._lock.release()
            except LockError:
                return  # another producer has it

    def _raise(self, stream: Stream, fence: Fence) -> int:
        """Raise the fence of another stream, so that it refuses earlier producers. Returns the newest epoch."""
        _look_up_again(stream)
        with stream.translated():
            script = load_script(stream.client, "raise_fence")
            return int(cast("Any", script(keys=[beside(stream.key, "fence")], args=[fence.feed, fence.epoch])))

    def _epoch(self) -> int:
        return int(self._prices.recall("fence", self._feed) or 0)


def _look_up_again(stream: Stream) -> None:
    """Look up the primary again. An old primary that was paused or cut off still answers, but its lease is invalid."""
    look_up_again(stream.client)
