"""Reads the state of the pipeline from Redis and the database. Changes nothing in them, except for `begin`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.errors import OutageError, TickpipeError
from common.streams.channels import ChannelStreams
from common.streams.group import IDLE_AFTER, ConsumerGroup, Member, total
from common.streams.lease import active_producers
from tickpipe.inspect.cached_query import CachedQuery
from tickpipe.inspect.consumers import ConsumerTracker
from tickpipe.inspect.rates import RATE_WINDOW, Rate
from tickpipe.inspect.sizes import Sizes
from tickpipe.inspect.snapshot import DatabaseInfo, Session, Snapshot, SymbolStatus

#: Seconds between two readings of what changes slowly.
SIZES_EVERY, DATABASE_EVERY = 10.0, 15.0


class StatusReader:
    """Reads snapshots of the pipeline, and keeps what counts and rates need between them.

    Redis is always read. The caller chooses what is read from the database: the terminal needs `symbols` and `sizes`,
    the dashboard `sessions` and `database`.
    """

    def __init__(
        self,
        channels: ChannelStreams,
        clock: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        *,
        began: int | None = None,
        symbols: Callable[[], Sequence[SymbolStatus]] = tuple,
        sizes: Callable[[], Sizes | None] = lambda: None,
        sessions: Callable[[int], Sequence[Session]] = lambda _: (),
        database: Callable[[], DatabaseInfo | None] = lambda: None,
        caught: type[TickpipeError] = OutageError,
    ) -> None:
        """`clock` gives microseconds UTC. `began`: count consumers' reports since then, by default since now.

        `sessions` takes the number of entries that are not stored yet. `caught`: errors that a snapshot shows; all
        others are raised.
        """
        self._channels = channels
        self._clock = clock
        self._monotonic = monotonic
        self._symbols = symbols
        self._sizes = CachedQuery(sizes, SIZES_EVERY, monotonic)
        self._sessions = sessions
        self._database = CachedQuery(database, DATABASE_EVERY, monotonic)
        self._caught = caught
        self._received_rate, self._stored_rate, self._consumers = Rate(), Rate(), ConsumerTracker()
        self._appended_before = 0
        self.began = clock() if began is None else began  # microseconds UTC
        self._last = Snapshot(group=channels.single.group)

    def begin(self) -> None:
        """Start counting now, and create the groups. Raises OutageError."""
        for stream in self._channels.all():
            stream.ensure_group()
        streams = self._channels.prices()
        self._appended_before = sum(stream.backlog().appended for stream in streams)
        self.began = self._clock()

    def read(self) -> Snapshot:
        """The pipeline now. If a part is unavailable, its last known figures and the error."""
        snapshot = replace(self._last, at=self._clock() / 1e6, redis_error="", database_error="")
        try:
            snapshot = self._with_redis(snapshot)
        except self._caught as error:
            # Old rates and consumers would look healthy.
            snapshot = replace(snapshot, redis_error=str(error), received_rate=0.0, stored_rate=0.0, consumers=())
        try:
            snapshot = replace(
                snapshot,
                symbols=self._symbols(),
                sizes=self._sizes(),
                sessions=self._sessions(snapshot.waiting),
                database=self._database(),
            )
        except self._caught as error:
            snapshot = replace(snapshot, database_error=str(error), stored_rate=0.0)
        self._last = snapshot
        return snapshot

    def received(self) -> int:
        """Prices received since the reader began; 0 if Redis is unavailable."""
        try:
            return sum(stream.backlog().appended for stream in self._channels.prices()) - self._appended_before
        except OutageError:
            return 0

    def left(self) -> int:
        """Entries that are not stored yet, feed events as well. Raises OutageError."""
        return sum(stream.backlog().left for stream in self._channels.all())

    def _with_redis(self, snapshot: Snapshot) -> Snapshot:
        now = self._monotonic()
        streams = self._channels.prices()
        by_stream = {stream.key: stream.groups() for stream in streams}
        names = dict.fromkeys(name for groups in by_stream.values() for name in groups)
        groups = {name: total(found[name] for found in by_stream.values() if name in found) for name in names}
        channels = {stream.key: by_stream[stream.key].get(stream.group) or stream.backlog() for stream in streams}
        members = merged(member for stream in streams for member in stream.consumers())
        active = sum(member.idle <= IDLE_AFTER for member in members)
        backlog = total(channels.values())._replace(consumers=active, idle=len(members) - active)
        reports = [
            (name, report)
            for stream in streams
            for name, report in stream.statistics.read().items()
            if report["at"] >= self.began and (name or not self.began)  # the sum of old reports has no name
        ]
        fresh = [report for _, report in reports if report["at"] >= self._clock() - RATE_WINDOW * 1e6]
        stored: Counter[str] = Counter()
        for name, report in reports:
            stored[name] += int(report.get("stored", 0))
        return replace(
            snapshot,
            received=backlog.appended - self._appended_before,
            stored=sum(stored.values()),
            dead_letters=sum(report.get("dead_letters", 0) for _, report in reports),
            received_rate=self._received_rate.update(now, backlog.appended),
            stored_rate=self._stored_rate.update(now, sum(stored.values())),
            latency_p50=worst(fresh, "latency_p50"),
            latency_p99=worst(fresh, "latency_p99"),
            backlog=backlog,
            channels=channels,
            groups=groups,
            producers=active_producers(self._channels.single),
            consumers=self._consumers.update(now, members, stored),
            note="" if groups or any(stream.check() for stream in streams) else no_stream(self._channels.single),
        )


def no_stream(stream: ConsumerGroup) -> str:
    """The message for a stream that does not exist."""
    return f"there is no stream {stream.key!r} in this Redis yet: has its producer run, is PRICE_STREAM the same?"


def merged(members: Iterable[Member]) -> list[Member]:
    """The consumers of a group on several streams: all pending entries, and the last time it asked for one."""
    found: dict[str, Member] = {}
    for name, pending, idle in members:
        before = found.get(name, Member(name, 0, idle))
        found[name] = Member(name, before.pending + pending, min(before.idle, idle))
    return list(found.values())


def worst(reports: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The highest value of a figure in the consumers' reports; None if no report has it."""
    return max((report[name] for report in reports if report.get(name) is not None), default=None)
