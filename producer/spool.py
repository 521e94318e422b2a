"""Stores entries on disk while Redis is unavailable: one SQLite file for each run of a producer, under a file lock.

A killed producer leaves its file behind. The next producer for the same stream finds the lock free and adopts the file.
Only this module knows the table.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import stat
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from common.errors import OutageError
from common.streams.stream import Fields

logger = logging.getLogger("producer.spool")

#: Maximum size of a row in bytes.
MAX_ROW = 16 * 1024 * 1024
_TABLE = "CREATE TABLE entries (id INTEGER PRIMARY KEY, stream TEXT, fields TEXT)"
_COUNT = "SELECT count(*), coalesce(sum(length(fields)), 0) FROM entries"


class Outgoing(NamedTuple):
    """An entry to append. `stream` is "prices" or "feed"."""

    stream: str
    fields: Fields


class Chunk(NamedTuple):
    """Entries of one stream in a spool.

    `mark`: what `drop` needs to remove them, 0 without entries. `after`, `previous`: the mark of the entry before them,
    and the entry, if Redis has appended it; else 0 and None.
    """

    mark: int
    entries: Sequence[Fields]
    after: int
    previous: Fields | None


class SpoolFullError(OutageError):
    """The spool cannot accept entries: it has reached its maximum size, or the disk is full."""


class SpoolDamagedError(OutageError):
    """The file is not a spool of tickpipe, or a row in it is not an entry. The file is left unchanged."""


class Spool:
    """A queue of entries on disk. Several threads of one process may use it."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Lock `path`. A missing file is created by the first `put`. `max_bytes` limits the size of the entries.

        Raises filelock's Timeout if another process has the lock.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._db: sqlite3.Connection | None = None
        self._guard = threading.Lock()
        self._waiting = {"prices": 0, "feed": 0}
        self._bytes = 0
        # Rows up to these ids were appended, but a full disk prevented their deletion.
        self._done = {"prices": 0, "feed": 0}
        # Rows up to these ids are in the stream, but too few replicas have confirmed them. And the number of such rows.
        self._appended, self._unconfirmed = {"prices": 0, "feed": 0}, {"prices": 0, "feed": 0}
        self._file_lock = FileLock(path.with_suffix(".lock"), timeout=0)
        self._file_lock.acquire()
        try:
            if _exists(path):
                with _translated(path):
                    self._connection()
        except OutageError:
            self._file_lock.release()
            raise

    @property
    def entries(self) -> int:
        """Number of waiting entries."""
        return sum(self._waiting.values())

    def waiting(self, stream: str) -> int:
        """Number of entries that wait for this stream, "prices" or "feed"."""
        return self._waiting[stream]

    def not_appended(self, stream: str) -> int:
        """Number of waiting entries that Redis has not appended yet."""
        return self._waiting[stream] - self._unconfirmed[stream]

    @property
    def all_appended(self) -> bool:
        """Whether Redis has appended all waiting entries."""
        return not any(map(self.not_appended, self._waiting))

    def put(self, entries: Sequence[Outgoing], *, appended: bool = False) -> None:
        """Append the entries and fsync them. Raises SpoolFullError if none of them was stored.

        `appended`: Redis has appended the entries, but they need this copy until replicas confirm them. The maximum
        size applies to batches with prices. Feed events are few and always accepted.
        """
        rows = [(entry.stream, json.dumps(entry.fields)) for entry in entries]
        size = sum(len(fields) for _, fields in rows)
        with self._guard, _translated(self.path):
            if self._bytes + size > self._max_bytes and any(entry.stream == "prices" for entry in entries):
                raise SpoolFullError(f"the spool {self.path} is full at {self._bytes:,} bytes (--spool-max)")
            with self._connection() as db:
                db.executemany("INSERT INTO entries (stream, fields) VALUES (?, ?)", rows)
            for stream, count in Counter(stream for stream, _ in rows).items():
                if appended and not self.not_appended(stream):  # else the entries before these have to be first
                    last = db.execute("SELECT max(id) FROM entries WHERE stream = ?", (stream,))
                    self._appended[stream] = last.fetchone()[0]
                    self._unconfirmed[stream] += count
                self._waiting[stream] += count
            self._bytes += size

    def head(self, stream: str, count: int) -> Chunk:
        """Up to `count` of the oldest entries for this stream that Redis has not appended."""
        with self._guard, _translated(self.path):  # all at once: another thread may forget what is appended
            query = "SELECT id, stream, fields FROM entries WHERE stream = ? AND id > ? ORDER BY id LIMIT ?"
            after, previous = self._last_appended(stream)
            start = max(self._done[stream], after)
            rows = self._connection().execute(query, (stream, start, count)).fetchall()
            if self.not_appended(stream) and not rows:  # else a replay would never end
                raise SpoolDamagedError(f"the spool {self.path} is damaged: it has rows without a valid id")
        entries = [_entry(self.path, *row)[1] for row in rows]
        return Chunk(rows[-1][0] if rows else 0, entries, after, previous)

    def appended(self, stream: str) -> tuple[int, Fields | None]:
        """The mark of the last entry for this stream that Redis has appended, and the entry; 0 and None without one."""
        with self._guard, _translated(self.path):
            return self._last_appended(stream)

    def _last_appended(self, stream: str) -> tuple[int, Fields | None]:
        query = "SELECT id, stream, fields FROM entries WHERE stream = ? AND id = ?"
        row = self._connection().execute(query, (stream, self._appended[stream])).fetchone()
        return (row[0], _entry(self.path, *row)[1]) if row else (0, None)

    def set_appended(self, stream: str, chunk: Chunk) -> None:
        """Redis has appended this chunk, unless what is appended was forgotten since the chunk was read."""
        with self._guard, _translated(self.path):
            if self._appended[stream] == chunk.after:
                self._unconfirmed[stream] += len(chunk.entries)
                self._appended[stream] = chunk.mark

    def forget_appended(self, stream: str) -> None:
        """Redis may lack entries that it had appended: after an error, another node may be the primary."""
        with self._guard:
            self._appended[stream] = self._unconfirmed[stream] = 0

    def drop(self, stream: str, mark: int) -> None:
        """Remove the entries for this stream up to `mark`, which need this copy no longer."""
        with self._guard, _translated(self.path):
            db = self._connection()
            query = f"{_COUNT} WHERE stream = ? AND id > ? AND id <= ?"
            entries, size = db.execute(query, (stream, self._done[stream], mark)).fetchone()
            self._waiting[stream] -= entries
            self._bytes -= size
            if mark >= self._appended[stream]:
                self._appended[stream] = self._unconfirmed[stream] = 0
            else:
                self._unconfirmed[stream] -= entries
            try:
                with db:
                    db.execute("DELETE FROM entries WHERE stream = ? AND id <= ?", (stream, mark))
                self._done[stream] = 0  # an empty table numbers its rows from 1 again
            except sqlite3.Error:  # deleting a row needs space on a full disk; removing the file does not
                self._done[stream] = mark
            if self.entries == 0:  # SQLite never shrinks a file, and `status` reports its size as waiting
                db.close()
                self._db, self._done = None, dict.fromkeys(self._done, 0)
                _remove(*(Path(f"{self.path}{end}") for end in ("", "-wal", "-shm")))

    def discard_since(self, time: int) -> int:
        """Remove the entries from `time` on (microseconds UTC): prices by `received`, feed events by `at`.

        Feed events after a removed one go, too: their times need not be in order, and a number that is missing between
        others would count as lost. Returns the number of prices removed.
        """
        with self._guard, _translated(self.path):
            db, removed, ended = self._connection(), Counter[str](), set[str]()
            for number, stream, fields in db.execute("SELECT id, stream, fields FROM entries ORDER BY id").fetchall():
                entry = _entry(self.path, number, stream, fields)[1]
                late = int(entry["received" if stream == "prices" else "at"]) >= time
                if stream == "feed" and late:
                    ended.add(entry["session"])
                if late or (stream == "feed" and entry["session"] in ended):
                    with db:
                        db.execute("DELETE FROM entries WHERE id = ?", (number,))
                    removed[stream] += 1
                    self._bytes -= len(fields)
            for stream in self._waiting:
                self._waiting[stream] -= removed[stream]
                self._appended[stream] = self._unconfirmed[stream] = 0
        return removed["prices"]

    def close(self) -> None:
        """Close the file and release its lock. An empty file is removed."""
        with self._guard:
            if self._db is not None:
                self._db.close()
                self._db = None
            if self.entries == 0:
                _remove(self.path)
            self._file_lock.release()
            if self.entries == 0:
                _remove(self.path.with_suffix(".lock"))

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            _create(self.path)
            db = sqlite3.connect(self.path, check_same_thread=False)
            try:
                _harden(db)
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")  # in WAL mode: one fsync a commit
                with db:
                    db.execute(_TABLE.replace("TABLE", "TABLE IF NOT EXISTS", 1))
                _check_schema(db, self.path)
                for stream in self._waiting:
                    self._waiting[stream] = db.execute(f"{_COUNT} WHERE stream = ?", (stream,)).fetchone()[0]
                rows, self._bytes = db.execute(_COUNT).fetchone()
                if rows != self.entries:
                    raise SpoolDamagedError(f"the spool {self.path} is damaged: it has rows of an unknown stream")
            except (sqlite3.Error, SpoolDamagedError):
                db.close()  # else the next call would take it as ready
                raise
            self._db = db
        return self._db


def read_spool(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Stream and fields of each entry, read without a lock and without a change to the file.

    Raises SpoolFullError, SpoolDamagedError.
    """
    with _translated(path):
        if not _exists(path):
            return
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            _harden(db)
            if not _check_schema(db, path):
                return
            for row in db.execute("SELECT id, stream, fields FROM entries ORDER BY id"):
                yield _entry(path, *row)


def _exists(path: Path) -> bool:
    """Whether the file exists. Raises SpoolDamagedError if the path is a link, pipe, device or folder."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise SpoolDamagedError(f"the spool {path} is not a regular file: remove it")
    return True


def _create(path: Path) -> None:
    """Create the file for this user only, independent of the umask. SQLite gives its other files the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600))
    except OSError as error:
        raise SpoolFullError(f"the spool {path} cannot be written: {error.strerror}") from error


def _harden(db: sqlite3.Connection) -> None:
    """Limit the harm that a planted or damaged file can do."""
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW)
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")


def _check_schema(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the file has the table yet. Raises SpoolDamagedError for another table, view, trigger or index."""
    found = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 2").fetchall()
    if found and found != [("table", "entries", "entries", _TABLE)]:
        raise SpoolDamagedError(f"{path} is not a spool of tickpipe: move it out of the folder")
    return bool(found)


def _entry(path: Path, number: object, stream: object, fields: object) -> tuple[str, dict[str, str]]:
    """Stream and fields of a row. Raises SpoolDamagedError."""
    try:
        decoded: Any = json.loads(fields) if isinstance(fields, str) else None
    except (ValueError, RecursionError):
        decoded = None
    sound = isinstance(decoded, dict) and bool(decoded) and all(isinstance(value, str) for value in decoded.values())
    if sound and stream in ("prices", "feed"):
        return str(stream), decoded
    raise SpoolDamagedError(f"the spool {path} is damaged: row {number} is not an entry")


def _remove(*paths: Path) -> None:
    """Remove the files if possible. A file on a disk that has become read-only stays, and is replayed again later."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise SpoolFullError(f"the spool {path} cannot be written: {error}") from error
