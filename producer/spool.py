"""Stores entries on disk while Redis is unavailable: one SQLite file for each run of a producer, under a file lock.

A killed producer leaves its file behind. The next producer for the same stream finds the lock free and adopts the file.
Only this module knows the table.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import platformdirs
from filelock import FileLock, Timeout

from common.errors import ConfigurationError, OutageError
from common.settings import Secret, absolute_folder
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

    def put(self, entries: Sequence[Outgoing]) -> None:
        """Append the entries and fsync them. Raises SpoolFullError if none of them was stored.

        The maximum size applies to batches with prices. Feed events are few and always accepted.
        """
        rows = [(entry.stream, json.dumps(entry.fields)) for entry in entries]
        size = sum(len(fields) for _, fields in rows)
        with self._guard, _translated(self.path):
            if self._bytes + size > self._max_bytes and any(entry.stream == "prices" for entry in entries):
                raise SpoolFullError(f"the spool {self.path} is full at {self._bytes:,} bytes (--spool-max)")
            with self._connection() as db:
                db.executemany("INSERT INTO entries (stream, fields) VALUES (?, ?)", rows)
            for stream, _ in rows:
                self._waiting[stream] += 1
            self._bytes += size

    def head(self, stream: str, count: int) -> tuple[int, list[Fields]]:
        """Up to `count` of the oldest entries for this stream, and the mark that `drop` needs to remove them."""
        with self._guard, _translated(self.path):
            query = "SELECT id, stream, fields FROM entries WHERE stream = ? AND id > ? ORDER BY id LIMIT ?"
            rows = self._connection().execute(query, (stream, self._done[stream], count)).fetchall()
        if self._waiting[stream] and not rows:  # else a replay would never end
            raise SpoolDamagedError(f"the spool {self.path} is damaged: it has rows without a valid id")
        return (rows[-1][0] if rows else 0), [_entry(self.path, *row)[1] for row in rows]

    def drop(self, stream: str, mark: int) -> None:
        """Remove the entries for this stream up to `mark`, which Redis has acknowledged."""
        with self._guard, _translated(self.path):
            db = self._connection()
            query = f"{_COUNT} WHERE stream = ? AND id > ? AND id <= ?"
            entries, size = db.execute(query, (stream, self._done[stream], mark)).fetchone()
            self._waiting[stream] -= entries
            self._bytes -= size
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


def spool_folder(spool_dir: Path | None, redis_url: Secret, price_stream: str) -> Path:
    """The folder of the spools for this Redis and stream, in `spool_dir` or the user's state folder.

    Each destination has a folder of its own, without a secret in its name. Otherwise a producer of real prices could
    adopt simulated ones that another producer left behind.
    """
    parts = urlsplit(redis_url.reveal())
    db = parse_qs(parts.query).get("db", [""])[0]
    place = f"{parts.hostname or ''}:{parts.port or ''}{parts.path}?{db}-{price_stream}"
    name = re.sub(r"[^A-Za-z0-9.]+", "-", place).strip("-")[:100]
    # The name is shortened. The digest keeps two destinations apart.
    digest = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:8]
    spools = spool_dir or absolute_folder(lambda: platformdirs.user_state_path("tickpipe") / "spool", "--spool-dir")
    return spools / f"{name}-{digest}"


def make_folder(folder: Path) -> None:
    """Create the spool's folder for this user only.

    Raises ConfigurationError if that fails, or if other users can write to the folder: they could inject prices.
    """
    try:
        for parent in reversed(folder.parents):
            parent.mkdir(mode=0o755, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if reason := _unsafe(folder.lstat()):
            raise ConfigurationError(f"the spool's folder {folder} {reason}, or choose another one with --spool-dir")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"the spool's folder {folder} cannot be written ({error}): choose another one with --spool-dir"
        ) from None


def _unsafe(found: os.stat_result) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link: give the folder itself as --spool-dir"
    if found.st_uid != os.geteuid():
        return f"belongs to user id {found.st_uid}, but this process has user id {os.geteuid()}: run as that user"
    if found.st_mode & 0o022:
        return "is not private: other users can write to it: chmod 700 it after checking its files"
    return None


def spool_path(folder: Path, session: int) -> Path:
    """The spool of the producer's run that began with this session."""
    return folder / f"{session}.spool"


def spool_files(folder: Path) -> list[Path]:
    """The spools in the folder, oldest first."""
    return sorted(folder.glob("*.spool"))


def adopt_orphans(folder: Path, own: Path) -> Iterator[Spool]:
    """The spools that dead producers left in the folder, one at a time, each locked."""
    for path in spool_files(folder):
        if path == own:
            continue
        try:
            yield Spool(path, max_bytes=0)
        except (Timeout, FileNotFoundError):
            continue  # its producer is alive, or has just finished
        except OSError as error:
            logger.error("spool not adopted: %s (%s). Its prices stay in the file", path, error)
        except OutageError as error:
            logger.error("spool not adopted: %s. Its prices stay in the file", error)
