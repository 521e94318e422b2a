"""The channels of a feed. Each has its own sessions, numbers its events in them, and puts them into its own queue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from common.channels import channel_of
from producer.config import FeedConfig
from producer.queue import EventQueue
from producer.session import PriceEvent, Session, emit_overflow

logger = logging.getLogger("producer.feed")

#: Symbols whose channel is kept in memory, at most. A server may send any number of invalid names.
MAX_KNOWN = 100_000


class Channel:
    """One channel. Only the feed's thread calls `put`; any thread may emit feed events of `session`."""

    session: Session

    def __init__(self, queue: EventQueue, clock: Callable[[], int]) -> None:
        """`clock` gives microseconds UTC. Call `begin` before anything else."""
        self._queue = queue
        self._clock = clock
        self._lost: tuple[PriceEvent, PriceEvent] | None = None  # first and last of an unreported loss

    @property
    def above_watermark(self) -> bool:
        """Whether the queue is so full that the feed should wait for the publisher."""
        return self._queue.above_watermark

    def begin(self, session: int) -> None:
        """Begin a session. Its id is its start in microseconds UTC."""
        self.session = Session(session, self._queue.put_always, self._clock)

    def put(self, event: Mapping[str, Any], now: int) -> bool:
        """Number a price event and put it into the queue. Returns False if the queue is full: the event is lost."""
        price = self.session.number(event, now)
        if self._queue.put(price):
            if self._lost:
                self.report_lost()
            return True
        self._lost = (self._lost[0] if self._lost else price, price)
        return False

    def report_lost(self) -> None:
        """Emit an `overflow` event for the prices that were lost since the last one, if any."""
        if self._lost:
            first, last = self._lost
            self._lost = None
            logger.error("queue full (--queue-max): %d price events lost", last.seq - first.seq + 1)
            emit_overflow(first, last, "queue full")


class Channels:
    """All channels of a feed. Each emits the events of the shared connection, with the same time."""

    def __init__(self, config: FeedConfig, queues: Sequence[EventQueue], clock: Callable[[], int]) -> None:
        """`queues`: one for each channel. `clock` gives microseconds UTC. Call `begin` before anything else."""
        self._config = config
        self._channels = [Channel(queue, clock) for queue in queues]
        self._known: dict[str, Channel] = {}
        self._session_ids: set[int] = set()
        self.began = 0  # when the current sessions began, microseconds UTC

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._channels)

    def of(self, event: Mapping[str, Any]) -> Channel:
        """The channel of a price event. An event without a symbol becomes a dead letter of the first one."""
        if len(self._channels) == 1 or not isinstance(symbol := event.get("symbol"), str):
            return self._channels[0]
        if (channel := self._known.get(symbol)) is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            channel = self._known[symbol] = self._channels[channel_of(symbol, len(self._channels))]
        return channel

    @property
    def above_watermark(self) -> bool:
        """Whether a queue is so full that the feed should wait for its publisher."""
        return any(channel.above_watermark for channel in self._channels)

    def begin(self, now: int, wanted: Iterable[str]) -> None:
        """Begin the first session of each channel, at `now` or a few microseconds later."""
        self._begin(self._new_ids(now), wanted, [{} for _ in self._channels])

    def roll_over(self, now: int, wanted: Iterable[str]) -> int:
        """End the sessions and begin new ones. Returns when they begin: at `now` or a few microseconds later."""
        old = [channel.session for channel in self._channels]
        if now < old[0].ends:
            ahead = max(session.ahead(now) for session in old)
            logger.warning("the clock has gone back by %.1f s: a new session begins", ahead / 1e6)
        ids = self._new_ids(now)
        self.checkpoint("stopped", max(ids))
        self._begin(ids, wanted, [{"continues": session.id} for session in old])
        return self.began

    def emit(self, kind: str, at: int, **detail: object) -> None:
        """Emit a feed event in each channel. `at`: microseconds UTC."""
        for channel in self._channels:
            channel.session.emit(kind, at, **detail)

    def emit_symbols(self, kind: str, at: int, symbols: Mapping[str, str] | Sequence[str]) -> None:
        """Emit a feed event in each channel that has some of these symbols, with its own symbols only."""
        for channel, names in zip(self._channels, self._by_channel(symbols), strict=True):
            if names:
                found = {name: symbols[name] for name in names} if isinstance(symbols, Mapping) else names
                channel.session.emit(kind, at, symbols=found)

    def checkpoint(self, kind: str, at: int, **detail: object) -> None:
        """As `emit`, with the last sequence number and the range of times of each channel's session."""
        for channel in self._channels:
            channel.session.checkpoint(kind, at, **detail)

    def report_lost(self) -> None:
        """Emit `overflow` events for the prices that were lost since the last ones, if any."""
        for channel in self._channels:
            channel.report_lost()

    def _begin(self, ids: Sequence[int], wanted: Iterable[str], details: Sequence[dict[str, Any]]) -> None:
        self.began = max(ids)
        config, count = self._config, len(ids)
        by_channel = self._by_channel(sorted(wanted))
        for number, (channel, session, symbols, detail) in enumerate(
            zip(self._channels, ids, by_channel, details, strict=True)
        ):
            channel.begin(session)
            if count > 1:  # sessions that begin together have the same `first`
                detail |= {"channel": number, "channels": count, "first": min(ids)}
            channel.session.emit("started", self.began, feed=config.name, host=config.host, symbols=symbols, **detail)

    def _new_ids(self, now: int) -> list[int]:
        """For each channel, the first microsecond from `now` on that no other session has as its id.

        All producers begin new sessions at midnight. So that ids differ, each channel of each shard uses only
        microseconds with its own remainder.
        """
        shard, count = self._config.shard, len(self._channels)
        step = count * shard.count
        ids = []
        for channel in range(count):
            start = now + (shard.index * count + channel - now) % step
            while start in self._session_ids:  # the clock may go back to exactly the same microsecond
                start += step
            ids.append(start)
        self._session_ids.update(ids)
        return ids

    def _by_channel(self, symbols: Iterable[str]) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in self._channels]
        for symbol in symbols:
            found[channel_of(symbol, len(found))].append(symbol)
        return found
