"""Reads the state of the pipeline from Redis and the database. Changes nothing in them, except for `begin`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.errors import OutageError, TickpipeError
from common.streams.group import ConsumerGroup
from tickpipe.inspect.cached_query import CachedQuery
from tickpipe.inspect.consumers import ConsumerTracker
from tickpipe.inspect.rates import RATE_WINDOW, Rate
from tickpipe.inspect.sizes import Sizes
from tickpipe.inspect.snapshot import DatabaseInfo, Session, Snapshot, SymbolStatus, backlog_left

#: Seconds between two readings of what changes slowly.
SIZES_EVERY, DATABASE_EVERY = 10.0, 15.0


class StatusReader:
    """Reads snapshots of the pipeline, and keeps what counts and rates need between them.

    Redis is always read. The caller chooses what is read from the database: the terminal needs `symbols` and `sizes`,
    the dashboard `sessions` and `database`.
    """

    def __init__(
        self,
        stream: ConsumerGroup,
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
        self._stream = stream
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
        self._last = Snapshot(group=stream.group)

    def begin(self) -> None:
        """Start counting now, and create the group. Raises OutageError."""
        self._stream.ensure_group()
        self._appended_before = self._stream.backlog().appended
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
            return self._stream.backlog().appended - self._appended_before
        except OutageError:
            return 0

    def left(self) -> int:
        """Entries that are not stored yet. Raises OutageError."""
        return backlog_left(self._stream.backlog())

    def _with_redis(self, snapshot: Snapshot) -> Snapshot:
        now = self._monotonic()
        groups = self._stream.groups()
        backlog = groups.get(self._stream.group) or self._stream.backlog()
        reports = {name: each for name, each in self._stream.statistics.read().items() if each["at"] >= self.began}
        fresh = [report for report in reports.values() if report["at"] >= self._clock() - RATE_WINDOW * 1e6]
        stored = {name: int(report.get("stored", 0)) for name, report in reports.items()}
        return replace(
            snapshot,
            received=backlog.appended - self._appended_before,
            stored=sum(stored.values()),
            dead_letters=sum(report.get("dead_letters", 0) for report in reports.values()),
            received_rate=self._received_rate.update(now, backlog.appended),
            stored_rate=self._stored_rate.update(now, sum(stored.values())),
            latency_p50=worst(fresh, "latency_p50"),
            latency_p99=worst(fresh, "latency_p99"),
            backlog=backlog,
            groups=groups,
            consumers=self._consumers.update(now, self._stream.consumers(), stored),
            note="" if groups or self._stream.check() else no_stream(self._stream),
        )


def no_stream(stream: ConsumerGroup) -> str:
    """The message for a stream that does not exist."""
    return f"there is no stream {stream.key!r} in this Redis yet: has its producer run, is PRICE_STREAM the same?"


def worst(reports: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The highest value of a figure in the consumers' reports; None if no report has it."""
    return max((report[name] for report in reports if report.get(name) is not None), default=None)
