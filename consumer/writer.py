"""Stores one batch in one transaction, with a dead letter for each entry that can never be stored.

Bad data and outages differ by exception class: DataError, IntegrityError and DecodeError are bad data. Any other error
is an outage; then nothing of the batch is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so

from common.database.client import DatabaseClient
from common.database.errors import BAD_DATA, one_line
from common.errors import DatabaseOutageError, DatabasePermissionError, DecodeError
from common.streams.stream import Entry
from consumer import rights
from consumer.bisect import insert_bisected, insert_rows
from consumer.dead_letters import DeadLetter, Row, insert_dead_letters, validate
from consumer.tables import TableWriter

logger = logging.getLogger("consumer.writer")

Insert = Callable[[Cursor, TableWriter, list[Row]], tuple[int, list[DeadLetter]]]


class Stored(NamedTuple):
    """The result of a batch: rows inserted, rows that existed already, dead letters."""

    inserted: int
    duplicates: int
    dead: int


class Writer:
    """Writes batches to the database."""

    def __init__(self, database: DatabaseClient) -> None:
        self._database = database

    def ping(self) -> bool:
        """Whether the database answers."""
        return self._database.ping()

    def check_rights(self) -> None:
        """Raise ConfigurationError if the role or the schema does not allow to store, DatabaseOutageError."""
        with self._database.transaction() as connection, connection.cursor() as cursor:
            rights.check(cursor)

    def insert_batch(
        self, table: TableWriter, stream: str, entries: Sequence[Entry], *, bisect: bool = False
    ) -> Stored:
        """Store a batch in one transaction: each entry becomes a row or a dead letter. Existing rows stay.

        `bisect`: find the rows that fail one by one, whatever error they cause. Raises DatabaseOutageError; then
        nothing of the batch is stored.
        """
        try:
            return self._insert_batch(table, stream, entries, bisect=bisect)
        except DatabasePermissionError as error:  # a person may grant the right again: until then the entries wait
            raise DatabaseOutageError(f"{error} ({rights.NEEDED})") from error

    def _insert_batch(self, table: TableWriter, stream: str, entries: Sequence[Entry], *, bisect: bool) -> Stored:
        if not bisect:
            try:
                return self._insert_fast(table, entries)
            except (*BAD_DATA, DecodeError) as error:
                logger.debug("validating: %d entries, one by one: %s", len(entries), one_line(error))
        good, dead = validate(table, entries)
        if not bisect:
            try:
                return self._insert(stream, good, dead, table, insert_rows)
            except BAD_DATA as error:
                logger.debug("bisecting: %d rows: %s", len(good), one_line(error))
        return self._insert(stream, good, dead, table, insert_bisected)

    def _insert_fast(self, table: TableWriter, entries: Sequence[Entry]) -> Stored:
        """Fast path for nearly all batches: works on whole columns and leaves validation to the database."""
        # An entry that was deleted while pending has nothing to store. `verify` reports it as missing.
        rows = [entry.parts for entry in entries if entry.parts is not None]
        columns = table.codec.columns(rows)
        table.check_bytes(columns)
        with self._database.transaction() as connection, connection.cursor() as cursor:
            inserted = table.insert(cursor, columns)
            if inserted < len(rows):
                _wait_for_earlier_commits(cursor)
        return Stored(inserted, len(rows) - inserted, 0)

    def _insert(
        self, stream: str, good: list[Row], invalid: list[DeadLetter], table: TableWriter, insert: Insert
    ) -> Stored:
        with self._database.transaction() as connection, connection.cursor() as cursor:
            inserted, refused = insert(cursor, table, good)
            dead = invalid + refused
            new = insert_dead_letters(cursor, stream, dead)
            _wait_for_earlier_commits(cursor)
        for entry, reason in dead if new else ():  # a batch that is delivered again is logged once
            logger.error("dead letter: entry %s of %s: %s", entry.id.decode(), stream, reason)
        return Stored(inserted, len(good) - len(refused) - inserted, len(dead))


def _wait_for_earlier_commits(cursor: Cursor) -> None:
    """Make the next COMMIT wait for disk and standby even if the transaction has changed nothing.

    An existing row may belong to a commit whose wait for the standby was cancelled.
    """
    cursor.execute("SELECT pg_logical_emit_message(true, 'tickpipe', '')")
