"""Dead letters: what could not be stored, and why; and how to put it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from common.database.client import DatabaseClient
from common.streams.stream import Stream

#: Dead letters that are put back in one transaction.
BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which dead letters; what is None does not matter. `reason` is a part of the reason, in any case."""

    id: int | None = None
    session: int | None = None
    reason: str | None = None

    @property
    def arguments(self) -> dict[str, object]:
        """For _WHERE."""
        return {"id": self.id, "session": self.session, "reason": self.reason}


@dataclass(frozen=True)
class DeadLetter:
    """One of them. `raw` holds the stream entry's field names and values in turn, byte for byte."""

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
        """The raw entry, readable."""
        words = [part.decode(errors="backslashreplace") for part in self.raw]
        return " ".join(map("=".join, zip(words[::2], words[1::2], strict=True)))


def find(store: DatabaseClient, wanted: Filter, *, limit: int) -> list[DeadLetter]:
    """The oldest dead letters of this filter. Raises OutageError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(_SELECT + _WHERE + " ORDER BY id LIMIT %(limit)s", {**wanted.arguments, "limit": limit})
        return [_letter(row) for row in cursor.fetchall()]


def count(store: DatabaseClient, wanted: Filter) -> int:
    """How many dead letters of this filter there are. Raises OutageError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM dead_letters" + _WHERE, wanted.arguments)
        return int((cursor.fetchone() or (0,))[0])


def retry(store: DatabaseClient, stream_of: Callable[[str], Stream], wanted: Filter) -> Iterator[int]:
    """Append the dead letters of this filter to their streams again and delete them; yields counts as it goes.

    Deleted first, but committed only after the append: a crash in between leaves a dead letter too many, never one too
    few, and a consumer that refuses the entry at once waits for the commit, so that its new dead letter stands.
    Only those that are there at the start are tried. Raises OutageError.
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
    """Of one stream only: if another one is refused, the rollback cannot bring back what this one has taken."""
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

_TAKE = (  # constants joined, no value
    "DELETE FROM dead_letters WHERE id IN (SELECT id FROM dead_letters"
    + _WHERE
    + " AND stream = %(stream)s AND id <= %(newest)s ORDER BY id LIMIT %(limit)s) "
    "RETURNING id, at, stream, entry_id, session, seq, reason, raw"
)
