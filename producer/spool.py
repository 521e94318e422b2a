"""Where entries wait on disk while Redis is away: one SQLite file a producer's run, held by a file lock.

A killed producer leaves its file; the next producer with the same destination finds the lock free and adopts it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import platformdirs
from filelock import FileLock, Timeout

from common.errors import ConfigurationError, OutageError
from common.settings import Secret, absolute_folder
from common.stream import Fields

logger = logging.getLogger("producer.spool")


class Outgoing(NamedTuple):
    """An entry on its way to a stream: `stream` is "prices" or "feed"."""

    stream: str
    fields: Fields


class SpoolFullError(OutageError):
    """The spool takes no more: it has reached its bound, or the disk is full."""


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
        if path.exists():
            try:
                with _translated(path):
                    self._connection()
            except SpoolFullError:
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
            query = "SELECT id, fields FROM entries WHERE stream = ? AND id > ? ORDER BY id LIMIT ?"
            rows = self._connection().execute(query, (stream, self._done[stream], count)).fetchall()
        return (rows[-1][0] if rows else 0), [json.loads(fields) for _, fields in rows]

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
            db = sqlite3.connect(self.path, check_same_thread=False)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")  # in WAL mode: one fsync a commit
                with db:
                    db.execute("CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, stream TEXT, fields TEXT)")
                for stream in self._waiting:
                    self._waiting[stream] = db.execute(f"{_COUNT} WHERE stream = ?", (stream,)).fetchone()[0]
                self._bytes = db.execute(_COUNT).fetchone()[1]
            except sqlite3.Error:
                db.close()  # else it would be taken for set up
                raise
            self._db = db
        return self._db


def _remove(*paths: Path) -> None:
    """Remove the files that can be. On a disk that is read-only by now one stays: what is in it is appended again."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


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
    name = re.sub(r"[^A-Za-z0-9.]+", "-", place).strip("-")
    digest = hashlib.sha256(place.encode()).hexdigest()[:8]  # two places whose names read the same are still two
    spools = spool_dir or absolute_folder(lambda: platformdirs.user_state_path("tickpipe") / "spool", "--spool-dir")
    return spools / f"{name}-{digest}"


def make_folder(folder: Path) -> None:
    """Make the spool's folder, for this user alone. Raises ConfigurationError where that cannot be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"the spool's folder {folder} cannot be written ({error}): name one by --spool-dir"
        ) from None


def adopt_orphans(folder: Path, own: Path) -> Iterator[Spool]:
    """The spools that dead producers left in the folder, one by one, each held under its lock."""
    for path in sorted(folder.glob("*.spool")):
        if path == own:
            continue
        try:
            yield Spool(path, max_bytes=0)
        except (Timeout, FileNotFoundError):
            continue  # its producer lives, or has just finished
        except OSError as error:
            logger.error("the spool %s cannot be adopted (%s): its prices stay there", path, error)
        except SpoolFullError as error:
            logger.error("%s: its prices stay there", error)
