"""The sizes of table, stream and spool, their growth, and the days until the disk is full."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from common.database.client import DatabaseClient
from common.errors import TickpipeError
from common.streams.stream import Stream
from tickpipe import formatting
from tickpipe.progress import ProgressCallback

#: Seconds between two measurements from which a growth per day may be derived.
MIN_OBSERVATION = 600.0


@dataclass(frozen=True)
class Sizes:
    """Bytes, unless the name gives another unit. None: not known.

    `…_estimated` values rest on the prices that the feed reported in the last `estimated_over_seconds` (sql/0009). The
    growth of stream and spool is measured since the first call of the probe.
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

    def __str__(self) -> str:
        """Sizes, growth per day and days until the disk is full, in one line of 76 columns."""
        parts = [f"table {formatting.size(self.table_bytes)}{_per_day(self.table_bytes_per_day_estimated)}"]
        if self.stream_bytes is not None:
            parts.append(f"stream {formatting.size(self.stream_bytes)}{_per_day(self.stream_bytes_per_day)}")
        parts.append(f"spool {formatting.size(self.spool_bytes)}{_per_day(self.spool_bytes_per_day)}")
        free, days = self.table_disk_free_bytes, self.days_until_full_estimated
        parts.append("free unknown" if free is None else f"free {formatting.size(free)}")
        return "  ".join(parts) + (f", full in {min(days, 99_999):,.0f} days" if days is not None else "")


def _per_day(growth: float | None) -> str:
    return f" +{formatting.size(growth)}/day" if growth and growth > 0 else ""


@dataclass
class SizeProbe:
    """Measures the sizes when it is called. `disk`: a path on the database's disk, if that disk is on this machine."""

    streams: Callable[[], Sequence[Stream]]
    store: DatabaseClient
    spool: Path
    disk: Path | None = None
    monotonic: Callable[[], float] = time.monotonic
    first: tuple[float, int | None, int] | None = None  # seconds, bytes of the streams, bytes of the spool

    def __call__(self) -> Sizes:
        """Measure. Raises OutageError, and ConfigurationError if the schema is missing."""
        with self.store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute(_TICKS)
            size, rows, rows_a_day, bytes_a_day, seconds, data_folder = cast("tuple[Any, ...]", cursor.fetchone())
        folder = self.disk or (Path(data_folder) if data_folder else None)
        free = free_bytes(folder) if folder else None
        streams, used, limit = self._redis()
        now = self.monotonic(), streams, folder_size(self.spool)
        self.first = self.first or now
        days = (now[0] - self.first[0]) / 86_400
        stream_growth, spool_growth = (
            _growth(before, after, days) for before, after in zip(self.first[1:], now[1:], strict=True)
        )
        return Sizes(
            table_bytes=size,
            table_rows_estimated=rows,
            table_rows_per_day_estimated=rows_a_day,
            table_bytes_per_day_estimated=bytes_a_day,
            estimated_over_seconds=seconds,
            table_disk_free_bytes=free,
            days_until_full_estimated=days_until_full(free, bytes_a_day),
            stream_bytes=streams,
            stream_bytes_per_day=stream_growth,
            redis_used_bytes=used,
            redis_max_bytes=limit,
            spool_bytes=now[2],
            spool_bytes_per_day=spool_growth,
            spool_disk_free_bytes=free_bytes(self.spool),
        )

    def _redis(self) -> tuple[int | None, int | None, int | None]:
        """Bytes of the streams, used memory and maxmemory; None if Redis does not answer or has no limit."""
        with suppress(TickpipeError):
            found = [stream.memory() for stream in self.streams()]
            return sum(each.stream for each in found), found[0].used, found[0].limit
        return None, None, None


def _growth(before: int | None, after: int | None, days: float) -> float | None:
    """Bytes per day; None if too little time has passed."""
    return None if before is None or after is None or days * 86_400 < MIN_OBSERVATION else (after - before) / days


def days_until_full(free: float | None, per_day: float | None) -> float | None:
    """Days; None if unknown, or if nothing grows."""
    return None if free is None or per_day is None or per_day <= 0 else free / per_day


def free_bytes(path: Path) -> int | None:
    """Free bytes on the disk of a path, which need not exist yet; None if the disk cannot be read."""
    with suppress(OSError):
        return shutil.disk_usage(next(each for each in (path, *path.absolute().parents) if each.exists())).free
    return None


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder and its subfolders; 0 if it does not exist."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # the file may be removed at any time
            size += path.stat().st_size if path.is_file() else 0
    return size


def table_and_database(store: DatabaseClient) -> tuple[int, int]:
    """Bytes of the ticks (0 if the table does not exist yet) and of the database. Raises OutageError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(_DATABASE)
        return cast("tuple[int, int]", cursor.fetchone())


def watch_move(store: DatabaseClient, table: int, before: int, report: ProgressCallback) -> None:
    """Report the progress of a move to TimescaleDB until an error ends it: the database grows by what is copied.

    `table`, `before`: bytes of the ticks and of the database before the move. Run it in a thread with its own
    connection. Reading the size takes no lock, so it blocks no other session.
    """
    with store.autocommit() as connection, connection.cursor() as cursor:
        while True:
            cursor.execute("SELECT pg_database_size(current_database())")
            ((size,),) = cursor.fetchall()
            report(max(size - before, 0), table, "moving the ticks, about")
            time.sleep(1.0)


_DATABASE = """
SELECT coalesce(pg_total_relation_size(to_regclass('prices_real_time')), 0), pg_database_size(current_database())
"""

# A connection without an address is a Unix socket: the server's data folder is on this machine. Not every role may read
# its path.
_TICKS = """
SELECT bytes, rows, rows_per_day, bytes_per_day, seconds,
       CASE WHEN inet_server_addr() IS NULL THEN (SELECT setting FROM pg_settings WHERE name = 'data_directory') END
FROM ticks_growth
"""
