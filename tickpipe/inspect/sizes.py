"""How large table, stream and spool are, how fast they grow, and when the disk is full."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import redis

from common.database.client import DatabaseClient
from common.errors import OutageError
from common.streams.client import expect_primary
from tickpipe.terminal.progress import ProgressCallback

#: Seconds between two looks that are far enough apart to tell a day's growth from.
MIN_OBSERVATION = 600.0


@dataclass(frozen=True)
class Sizes:
    """Bytes, unless the name tells another unit; None: not known.

    `…_estimated` rests on what the feed has vouched for in the last `estimated_over_seconds` (sql/0009). The growth of
    stream and spool is what was seen since the first look.
    """

    table_bytes: int
    table_rows_estimated: int
    table_rows_per_day_estimated: float | None
    table_bytes_per_day_estimated: float | None
    estimated_over_seconds: float
    table_disk_free_bytes: int | None
    days_until_full_estimated: float | None
    stream_bytes: int | None
    stream_bytes_per_day: float | None
    redis_used_bytes: int | None
    redis_max_bytes: int | None
    spool_bytes: int
    spool_bytes_per_day: float | None
    spool_disk_free_bytes: int | None


@dataclass
class SizeProbe:
    """Measures when it is called. `disk`: a path on the database's disk, where that is on this machine."""

    client: redis.Redis
    streams: Sequence[str]
    store: DatabaseClient
    spool: Path
    disk: Path | None = None
    monotonic: Callable[[], float] = time.monotonic
    first: tuple[float, int | None, int] | None = None  # seconds, bytes of the streams and of the spool

    def __call__(self) -> Sizes:
        """Look. Raises OutageError, and ConfigurationError where the schema is missing."""
        with self.store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute(_TICKS)
            size, rows, rows_a_day, bytes_a_day, seconds, here = cast("tuple[Any, ...]", cursor.fetchone())
        folder = self.disk or (Path(here) if here else None)
        free = free_bytes(folder) if folder else None
        waiting, used, most = self._redis()
        now = self.monotonic(), waiting, folder_size(self.spool)
        self.first = self.first or now
        days = (now[0] - self.first[0]) / 86_400
        stream, spool = (_growth(before, after, days) for before, after in zip(self.first[1:], now[1:], strict=True))
        full = days_until_full(free, bytes_a_day)
        return Sizes(
            size, rows, rows_a_day, bytes_a_day, seconds, free, full,
            waiting, stream, used, most, now[2], spool, free_bytes(self.spool),
        )  # fmt: skip

    def _redis(self) -> tuple[int | None, int | None, int | None]:
        """The streams' bytes, all that Redis uses, and its bound; None where it does not say."""
        with suppress(redis.RedisError, OutageError):
            expect_primary(self.client)
            memory = self.client.info("memory")
            streams = sum(self.client.memory_usage(key) or 0 for key in self.streams)
            return streams, memory["used_memory"], memory.get("maxmemory") or None
        return None, None, None


def _growth(before: int | None, after: int | None, days: float) -> float | None:
    """Bytes a day; None where too little time has passed."""
    return None if before is None or after is None or days * 86_400 < MIN_OBSERVATION else (after - before) / days


def days_until_full(free: float | None, per_day: float | None) -> float | None:
    """Days; None where that is not known, or nothing grows."""
    return None if free is None or per_day is None or per_day <= 0 else free / per_day


def free_bytes(path: Path) -> int | None:
    """What is free on the disk of this path, or of the folder it will be made in; None where that cannot be seen."""
    with suppress(OSError):
        return shutil.disk_usage(next(each for each in (path, *path.absolute().parents) if each.exists())).free
    return None


def folder_size(folder: Path) -> int:
    """Bytes of the files in it."""
    size = 0
    for path in folder.glob("*"):
        with suppress(OSError):  # removed meanwhile
            size += path.stat().st_size
    return size


def table_and_database(store: DatabaseClient) -> tuple[int, int]:
    """Bytes of the ticks (0 where there is no table yet), and of the whole database. Raises OutageError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(_DATABASE)
        return cast("tuple[int, int]", cursor.fetchone())


def watch_move(store: DatabaseClient, table: int, before: int, tell: ProgressCallback) -> None:
    """ProgressCallback, until an error, how far a move of the ticks is: the database grows by what is copied.

    For a thread of its own with a connection of its own: the size is read without a lock, so it holds up nobody.
    """
    with store.autocommit() as connection, connection.cursor() as cursor:
        while True:
            cursor.execute("SELECT pg_database_size(current_database())")
            ((size,),) = cursor.fetchall()
            tell(max(size - before, 0), table, "moving the ticks, about")
            time.sleep(1.0)


_DATABASE = """
SELECT coalesce(pg_total_relation_size(to_regclass('prices_real_time')), 0), pg_database_size(current_database())
"""

# A connection by socket has no address: then the server's folder is here, though not every role may know where.
_TICKS = """
SELECT bytes, rows, rows_per_day, bytes_per_day, seconds,
       CASE WHEN inet_server_addr() IS NULL THEN (SELECT setting FROM pg_settings WHERE name = 'data_directory') END
FROM ticks_growth
"""
