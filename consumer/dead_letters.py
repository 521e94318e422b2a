"""Entries that can never be stored: found by validation or by the database, and kept in the table `dead_letters`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import psycopg2
from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so
from psycopg2.extras import execute_values

from common.errors import DecodeError
from common.number import to_bigint
from common.streams.stream import Entry
from consumer.tables import TableWriter


class Row(NamedTuple):
    """A valid entry: its values in the order of the columns, and the entry itself."""

    values: Sequence[bytes]
    entry: Entry


class DeadLetter(NamedTuple):
    """An entry that cannot be stored, and why."""

    entry: Entry
    reason: str


def validate(table: TableWriter, entries: Sequence[Entry]) -> tuple[list[Row], list[DeadLetter]]:
    """Split entries into valid rows and dead letters. Entries that were deleted while pending are in neither."""
    good: list[Row] = []
    dead: list[DeadLetter] = []
    for entry in entries:
        if entry.parts is None or entry.fields is None:
            continue
        try:
            values, record = table.codec.values(entry.parts), table.codec.decode(entry.fields)
        except DecodeError as error:
            dead.append(DeadLetter(entry, str(error)))
            continue
        reason = table.validation_error(record)
        if reason is None:
            good.append(Row(values, entry))
        else:
            dead.append(DeadLetter(entry, reason))
    return good, dead


def insert_dead_letters(cursor: Cursor, stream: str, dead: Sequence[DeadLetter]) -> int:
    """Insert these dead letters of this stream. Existing ones stay.

    Returns the number of new ones. (RETURNING would name them, but needs the right to SELECT.)
    Raises psycopg2's errors.
    """
    if not dead:
        return 0
    rows = []
    for entry, reason in dead:
        fields = entry.fields or {}
        seq = to_bigint(fields.get(b"seq", fields.get(b"number")))
        raw = [psycopg2.Binary(part) for part in entry.parts or ()]
        text = reason.replace("\0", "\\0").encode(errors="backslashreplace").decode()
        rows.append((stream, entry.id.decode(), to_bigint(fields.get(b"session")), seq, text, raw))
    execute_values(
        cursor,
        "INSERT INTO dead_letters (stream, entry_id, session, seq, reason, raw) VALUES %s ON CONFLICT DO NOTHING",
        rows,
        template="(%s, %s, %s, %s, %s, %s::bytea[])",
        page_size=len(rows),
    )
    return cursor.rowcount
