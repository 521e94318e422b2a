"""Dead letters: entries that could not be stored. Lists them and puts them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from common.database.client import DatabaseClient
from common.streams.stream import Stream

#: Maximum number of dead letters put back in one transaction.
BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Selects dead letters. None matches all; `reason` matches a part of the reason, ignoring case."""

    id: int | None = None
    session: int | None = None
    reason: str | None = None

    @property
    def arguments(self) -> dict[str, object]:
        """Parameters of the condition in SQL."""
        return {"id": self.id, "session": self.session, "reason": self.reason}


@dataclass(frozen=True)
class DeadLetter:
    """A dead letter. `raw` has the field names and values of the stream entry in turn, unchanged."""

    id: int
    at: datetime
    stream: str
    entry_id: str
    session: int | None
    seq: int | None
    reason: str
    raw: Sequence[bytes]

    @property
    def text(self) -> str:
        """The raw entry as text."""
        parts = [part.decode(errors="backslashreplace") for part in self.raw]
        return " ".join(map("=".join, zip(parts[::2], parts[1::2], strict=True)))


def find(store: DatabaseClient, wanted: Filter, *, limit: int) -> list[DeadLetter]:
    """The oldest dead letters that match. Raises OutageError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(_SELECT + _WHERE + " ORDER BY id LIMIT %(limit)s", {**wanted.arguments, "limit": limit})
        return [_letter(row) for row in cursor.fetchall()]


def count(store: DatabaseClient, wanted: Filter) -> int:
    """The number of dead letters that match. Raises OutageError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM dead_letters" + _WHERE, wanted.arguments)
        return int((cursor.fetchone() or (0,))[0])


def delete(store: DatabaseClient, letter: int) -> None:
    """Delete the dead letter with this id. Raises OutageError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM dead_letters WHERE id = %s", (letter,))


def retry(store: DatabaseClient, stream_of: Callable[[str], Stream], wanted: Filter) -> Iterator[int]:
    """Append the matching dead letters to their streams and delete them. Yields the number of each batch.

    A batch is deleted, appended, and then committed. A crash before the commit leaves a dead letter too many, never one
    too few. A consumer that rejects an entry at once waits for the commit, so its new dead letter is kept. Dead letters
    that are added after the start are not retried. Raises OutageError.
    """
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(max(id), 0) FROM dead_letters")
        newest = (cursor.fetchone() or (0,))[0]
        cursor.execute("SELECT DISTINCT stream FROM dead_letters" + _WHERE + " ORDER BY stream", wanted.arguments)
        names = [name for (name,) in cursor.fetchall()]
    for name in names:
        taken = {**wanted.arguments, "newest": newest, "limit": BATCH, "stream": name}
        while count := _retry_batch(store, stream_of(name), taken):
            yield count


def _retry_batch(store: DatabaseClient, stream: Stream, taken: Mapping[str, object]) -> int:
    """Put back a batch of one stream. With several, a rollback could not remove entries from the first stream."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(_TAKE, taken)
        letters = sorted((_letter(row) for row in cursor.fetchall()), key=lambda letter: letter.id)
        if letters:
            stream.append_parts([letter.raw for letter in letters])
    return len(letters)


def _letter(row: tuple[Any, ...]) -> DeadLetter:
    *values, raw = row
    return DeadLetter(*values, [bytes(part) for part in raw])  # type: ignore[call-arg]  # the columns of _SELECT


_SELECT = "SELECT id, at, stream, entry_id, session, seq, reason, raw FROM dead_letters"

_WHERE = """
WHERE (%(id)s::bigint IS NULL OR id = %(id)s) AND (%(session)s::bigint IS NULL OR session = %(session)s)
  AND (%(reason)s::text IS NULL OR strpos(lower(reason), lower(%(reason)s)) > 0)
"""

_TAKE = (  # joins constants, not values
    "DELETE FROM dead_letters WHERE id IN (SELECT id FROM dead_letters"
    + _WHERE
    + " AND stream = %(stream)s AND id <= %(newest)s ORDER BY id LIMIT %(limit)s) "
    "RETURNING id, at, stream, entry_id, session, seq, reason, raw"
)
