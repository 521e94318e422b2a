"""Inserts the good rows of a batch that the database rejects, and finds the bad ones by halving it."""

from __future__ import annotations

import psycopg2
from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so

from common.database.errors import one_line
from consumer.dead_letters import DeadLetter, Row
from consumer.tables import TableWriter

#: Classes of SQLSTATE that no row causes: connection, transaction state, rollback (deadlock), wrong SQL, resources
#: (full disk), locks, operator intervention, system error. Source: PostgreSQL's manual, appendix A.
_NOT_CAUSED_BY_A_ROW = {"08", "25", "40", "42", "53", "55", "57", "58"}


def insert_rows(cursor: Cursor, table: TableWriter, rows: list[Row]) -> tuple[int, list[DeadLetter]]:
    """Insert all rows by one statement. Returns the number of new rows, and no dead letters."""
    return table.insert(cursor, list(zip(*[values for values, _ in rows], strict=True))), []


def insert_bisected(cursor: Cursor, table: TableWriter, rows: list[Row]) -> tuple[int, list[DeadLetter]]:
    """Insert rows in halves until each bad row is alone, in savepoints of the current transaction.

    Returns the number of new rows, and a dead letter for each bad row. Raises psycopg2's errors that no row causes.
    """
    if not rows:
        return 0, []
    cursor.execute("SAVEPOINT part")
    try:
        inserted, _ = insert_rows(cursor, table, rows)
    except (psycopg2.Error, ValueError) as error:
        if isinstance(error, psycopg2.Error) and (error.pgcode or "08")[:2] in _NOT_CAUSED_BY_A_ROW:
            raise
        cursor.execute("ROLLBACK TO SAVEPOINT part")
        if len(rows) == 1:
            return 0, [DeadLetter(rows[0].entry, one_line(error))]
        half = len(rows) // 2
        first, first_dead = insert_bisected(cursor, table, rows[:half])
        second, second_dead = insert_bisected(cursor, table, rows[half:])
        return first + second, first_dead + second_dead
    cursor.execute("RELEASE SAVEPOINT part")
    return inserted, []
