"""Where entries wait on disk while Redis is away: one SQLite file a producer's run, held by a file lock.

A killed producer leaves its file; the next producer with the same destination finds the lock free and adopts it.
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


class Outgoing(NamedTuple):
    """An entry on its way to a stream: `stream` is "prices" or "feed"."""

    stream: str
    fields: Fields


class SpoolFullError(OutageError):
    """The spool takes no more: it has reached its bound, or the disk is full."""


class SpoolDamagedError(OutageError):
    """The file is not a spool of tickpipe, or a row in it is not an entry. Its prices stay there."""


class Spool:
    """A queue of entries on disk. Safe to use from several threads of the process that holds it."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Hold `path` under its lock, raising filelock's Timeout where another process does. No file is made yet."""
        self.path = path
        self._max_bytes = max_bytes
        self._db: sqlite3.Connection | None = None
        self._guard = threading.Lock()
        self._waiting = {"prices": 0, "feed": 0}
        self._bytes = 0
        self._done = {"prices": 0, "feed": 0}  # ids up to these are appended, though a full disk kept them
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
        """Entries waiting."""
        return sum(self._waiting.values())

    def waiting(self, stream: str) -> int:
        """Entries waiting for this stream: "prices" or "feed"."""
        return self._waiting[stream]

    def put(self, entries: Sequence[Outgoing]) -> None:
        """Append the entries, fsynced when this returns. Raises SpoolFullError, and then none of them is in it.

        The bound is for prices: feed events, few, always pass it.
        """
        rows = [(entry.stream, json.dumps(entry.fields)) for entry in entries]
        size = sum(len(fields) for _, fields in rows)
        with self._guard, _translated(self.path):
            if self._bytes + size > self._max_bytes and any(entry.stream == "prices" for entry in entries):
                raise SpoolFullError(f"the spool {self.path} holds {self._bytes:,} bytes, its bound (--spool-max)")
            with self._connection() as db:
                db.executemany("INSERT INTO entries (stream, fields) VALUES (?, ?)", rows)
            for stream, _ in rows:
                self._waiting[stream] += 1
            self._bytes += size

    def head(self, stream: str, count: int) -> tuple[int, list[Fields]]:
        """The oldest entries for this stream, up to `count`, and the mark to `drop` them by."""
        with self._guard, _translated(self.path):
            query = "SELECT id, stream, fields FROM entries WHERE stream = ? AND id > ? ORDER BY id LIMIT ?"
            rows = self._connection().execute(query, (stream, self._done[stream], count)).fetchall()
        if self._waiting[stream] and not rows:  # else a replay would never end
            raise SpoolDamagedError(f"the spool {self.path} is damaged: it has rows that cannot be read in their order")
        return (rows[-1][0] if rows else 0), [_entry(self.path, *row)[1] for row in rows]

    def drop(self, stream: str, mark: int) -> None:
        """Drop the entries for this stream up to `mark`: they have been appended."""
        with self._guard, _translated(self.path):
            db = self._connection()
            query = f"{_COUNT} WHERE stream = ? AND id > ? AND id <= ?"
            entries, size = db.execute(query, (stream, self._done[stream], mark)).fetchone()
            self._waiting[stream] -= entries
            self._bytes -= size
            try:
                with db:
                    db.execute("DELETE FROM entries WHERE stream = ? AND id <= ?", (stream, mark))
                self._done[stream] = 0  # numbers begin again in an empty table
            except sqlite3.Error:  # a full disk: deleting needs room, too, while removing the whole file gives some
                self._done[stream] = mark
            if self.entries == 0:  # SQLite gives no room back by itself, and what lies there is told as waiting
                db.close()
                self._db, self._done = None, dict.fromkeys(self._done, 0)
                _remove(*(Path(f"{self.path}{end}") for end in ("", "-wal", "-shm")))

    def close(self) -> None:
        """Let go of the file; where it is empty, remove it."""
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
                    raise SpoolDamagedError(f"the spool {self.path} is damaged: it has rows of no stream of ours")
            except (sqlite3.Error, SpoolDamagedError):
                db.close()  # else it would be taken for set up
                raise
            self._db = db
        return self._db


def read_spool(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Stream and fields of each entry in a spool, which is not changed. Raises SpoolFullError, SpoolDamagedError."""
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
    """Whether the file exists. Raises SpoolDamagedError for a link, pipe, device or folder in its place."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise SpoolDamagedError(f"the spool {path} is not a regular file: remove it")
    return True


def _create(path: Path) -> None:
    """Make the file for this user alone, whatever the umask; SQLite gives its other files the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600))
    except OSError as error:
        raise SpoolFullError(f"the spool {path} cannot be written: {error.strerror}") from error


def _harden(db: sqlite3.Connection) -> None:
    """Bound what a planted or damaged file can do."""
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW)
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA cell_size_check = ON")


def _check_schema(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the file holds our table yet. Raises SpoolDamagedError if it holds more: a view, trigger or index."""
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
    """Remove the files that can be. On a disk that is read-only by now one stays: what is in it is appended again."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


#: Most bytes of a row.
MAX_ROW = 16 * 1024 * 1024
_TABLE = "CREATE TABLE entries (id INTEGER PRIMARY KEY, stream TEXT, fields TEXT)"
_COUNT = "SELECT count(*), coalesce(sum(length(fields)), 0) FROM entries"


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise SpoolFullError(f"the spool {path} cannot be written: {error}") from error


def spool_folder(spool_dir: Path | None, redis_url: Secret, price_stream: str) -> Path:
    """Where spools for this Redis and stream lie, below `spool_dir` or the user's state folder; no secret in its name.

    A spool is replayed to no other place than its own: otherwise simulated prices that one producer left could be
    adopted by another that writes real ones.
    """
    parts = urlsplit(redis_url.reveal())
    db = parse_qs(parts.query).get("db", [""])[0]
    place = f"{parts.hostname or ''}:{parts.port or ''}{parts.path}?{db}-{price_stream}"
    name = re.sub(r"[^A-Za-z0-9.]+", "-", place).strip("-")[:100]
    # Two places whose names read the same are still two.
    digest = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:8]
    spools = spool_dir or absolute_folder(lambda: platformdirs.user_state_path("tickpipe") / "spool", "--spool-dir")
    return spools / f"{name}-{digest}"


def make_folder(folder: Path) -> None:
    """Make the spool's folder, for this user alone. Raises ConfigurationError if that fails.

    Whoever can write to the folder can put prices into our streams: one that others can write to is refused.
    """
    try:
        for parent in reversed(folder.parents):
            parent.mkdir(mode=0o755, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if problem := _unsafe(folder.lstat()):
            raise ConfigurationError(f"the spool's folder {folder} {problem}, or name another one by --spool-dir")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"the spool's folder {folder} cannot be written ({error}): name one by --spool-dir"
        ) from None


def _unsafe(found: os.stat_result) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link: name the folder itself by --spool-dir"
    if found.st_uid != os.geteuid():
        return f"belongs to user id {found.st_uid}, and this is user id {os.geteuid()}: run as that user"
    if found.st_mode & 0o022:
        return "is open: other users can write to it: chmod 700 it after a look at its files"
    return None


def spool_path(folder: Path, session: int) -> Path:
    """The spool of the producer's run that began with this session."""
    return folder / f"{session}.spool"


def spool_files(folder: Path) -> list[Path]:
    """The spools in the folder, the oldest first."""
    return sorted(folder.glob("*.spool"))


def adopt_orphans(folder: Path, own: Path) -> Iterator[Spool]:
    """The spools that dead producers left in the folder, one by one, each held under its lock."""
    for path in spool_files(folder):
        if path == own:
            continue
        try:
            yield Spool(path, max_bytes=0)
        except (Timeout, FileNotFoundError):
            continue  # its producer lives, or has just finished
        except OSError as error:
            logger.error("the spool %s cannot be adopted (%s): its prices stay there", path, error)
        except OutageError as error:
            logger.error("%s: its prices stay there", error)
