"""Stores entries again that are still in the streams, because a database may lack rows after a failover.

An acknowledged entry stays in the stream for a while (`--stream-keep`). PostgreSQL begins a new timeline when a standby
is promoted or a backup is restored. A consumer that notices a new timeline replays both streams. Existing rows stay.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import psycopg2
from redis.exceptions import LockError
from redis.lock import Lock

from common.database.client import DatabaseClient
from common.formatting import counted
from common.streams.group import ConsumerGroup
from common.streams.keys import beside
from common.streams.stream import Entry, Stream
from consumer.tables import TableWriter
from consumer.writer import Stored, Writer

logger = logging.getLogger("consumer.replay")

#: Seconds after which another consumer continues a replay whose consumer has died.
LOCK_TIMEOUT = 20.0
#: Errors if the timeline cannot be read: a missing right, a service without the function, a server in recovery.
_UNKNOWN = (
    psycopg2.errors.InsufficientPrivilege,
    psycopg2.errors.UndefinedFunction,
    psycopg2.errors.FeatureNotSupported,
    psycopg2.errors.ObjectNotInPrerequisiteState,
)
# A database that was created again has another oid. A server that was restored has another timeline.
_DATABASE = """
SELECT concat_ws('-', left(pg_walfile_name(pg_current_wal_lsn()), 8),
                 (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


class Route(NamedTuple):
    """A stream and the table that its entries go to."""

    stream: ConsumerGroup
    table: TableWriter


def read_timeline(database: DatabaseClient) -> str | None:
    """The timeline of the server and the oid of the database; None if they cannot be read.

    Raises DatabaseOutageError.
    """
    with database.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SAVEPOINT timeline")
        try:
            cursor.execute(_DATABASE)
            return str((cursor.fetchone() or ("",))[0])
        except _UNKNOWN as error:
            logger.debug("timeline unknown: %s", error)
            cursor.execute("ROLLBACK TO SAVEPOINT timeline")
            return None


def store_again(
    writer: Writer, table: TableWriter, stream: str, entries: Iterable[Entry], count: int
) -> Iterator[tuple[Stored, bytes]]:
    """Store the entries of this stream in batches of up to `count`.

    Yields the result of each batch, and the id of its last entry. Raises OutageError.
    """
    left = iter(entries)
    while batch := list(islice(left, count)):
        yield writer.insert_batch(table, stream, batch), batch[-1].id


class Replayer:
    """Replays the streams if the timeline of the database is not the one on which the group has stored its entries.

    Redis keeps two facts for the group: the timeline whose replay is complete, and the position of the last replay. So
    another consumer can continue a replay that was interrupted.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        writer: Writer,
        timeline: Callable[[], str | None],
        count: int,
        stop: threading.Event,
    ) -> None:
        """`count`: entries in one batch, at most. The first of `routes` is the prices'. `stop` ends a replay."""
        self._routes = routes
        self._prices = routes[0].stream
        self._writer = writer
        self._timeline = timeline
        self._count = count
        self._stop = stop
        self._current: str | None = None  # the timeline that this consumer has stored its entries on

    def check(self, on_batch: Callable[[], None] = lambda: None) -> bool:
        """Replay both streams if the timeline is new. Raises OutageError.

        Returns whether the database has every acknowledged entry. False means that another consumer replays, or that
        `stop` was set during the replay. `on_batch` is called after each batch.
        """
        timeline = self._timeline()
        if timeline is None:
            return True
        known = self._recall(self._prices.group)
        if timeline == self._current or (self._current is None and known in (None, timeline)):
            if known != timeline:  # the first consumer of this group, or Redis lost it at a failover of its own
                self._remember(self._prices.group, timeline)
            self._current = timeline
            return True
        lock = Lock(self._prices.client, beside(self._prices.key, f"replay:{self._prices.group}"), timeout=LOCK_TIMEOUT)
        with self._prices.translated():
            if not lock.acquire(blocking=False):
                return False
        try:
            if not self._replay(lock, timeline, on_batch):
                return False
        finally:
            _release(lock, self._prices)
        self._current = timeline
        return True

    def _replay(self, lock: Lock, timeline: str, on_batch: Callable[[], None]) -> bool:
        """Store the entries that are in the streams now. Returns whether all of them were stored."""
        logger.warning("the database is another one, or on another timeline: storing again what is in the streams")
        new = looked_at = 0
        for stream, table in self._routes:
            # Another consumer may have acknowledged entries on the old timeline since the last replay ended.
            start, end = self._position(stream, timeline), stream.last_id()
            scan = stream.scan(start, self._count, end)
            for stored, last in store_again(self._writer, table, stream.key, scan, self._count):
                new, looked_at = new + stored.inserted, looked_at + sum(stored)
                self._remember(_position_field(stream), f"{timeline} {last.decode()}")
                on_batch()
                if not self._keep(lock):
                    logger.warning("another consumer has begun to replay: this one stops")
                    return False
                if self._stop.is_set():
                    logger.warning("stopped during the replay: another consumer continues it")
                    return False
        self._remember(self._prices.group, timeline)
        logger.warning("replayed: %s of %s were missing", counted(new, "row"), counted(looked_at, "entry"))
        return True

    def _keep(self, lock: Lock) -> bool:
        """Hold the lock for longer. False if it was lost."""
        with self._prices.translated():
            try:
                return bool(lock.reacquire())
            except LockError:
                return False

    def _position(self, stream: ConsumerGroup, timeline: str) -> bytes:
        """The id at which a replay begins: after the last entry that was stored again on this timeline."""
        known, _, last = (self._recall(_position_field(stream)) or "").partition(" ")
        return f"({last}".encode() if known == timeline else b"-"

    def _recall(self, field: str) -> str | None:
        return self._prices.recall("database", field)

    def _remember(self, field: str, value: str) -> None:
        self._prices.remember("database", field, value)


def _position_field(stream: ConsumerGroup) -> str:
    return f"{stream.group} {stream.key}"


def _release(lock: Lock, stream: Stream) -> None:
    """Release the lock, unless another process has it by now."""
    with stream.translated():
        try:
            lock.release()
        except LockError as error:
            logger.debug("lock not released: %s", error)
