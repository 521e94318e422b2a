"""Reads a table that another program has filled, in order of time: batches of rows, in flat memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import psycopg2
from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so
from psycopg2.sql import SQL, Composable, Identifier, Literal

from common.database.client import DatabaseClient
from common.database.connections import is_pooled
from common.errors import ConfigurationError
from tickpipe.files.columns import COLUMNS, Row, choose_columns

#: Rows in one read, and in one transaction of the import.
BATCH = 5000


class Table(NamedTuple):
    """A table: its name as SQL, and the source's name of each of our columns."""

    name: str
    columns: Mapping[str, str]
    symbol: str


def find_table(store: DatabaseClient, name: str, wanted: Mapping[str, str], symbol: str = "") -> Table:
    """The table with this name, with or without its schema. `wanted`, `symbol`: as in `choose_columns`.

    Raises ConfigurationError if it does not exist, lacks a column or is tickpipe's own; OutageError.
    """
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(_FIND, (name, name))
        found = cursor.fetchall()
        if not found:
            raise ConfigurationError(f"--table {name!r}: the database has no such table. {_candidates(cursor)}")
        full_name, names = found[0]
    if {"session", "seq"} <= set(names):
        raise ConfigurationError(
            f"--table {name!r} is a table of tickpipe: copy it with `tickpipe export` and `tickpipe import`, or pg_dump"
        )
    return Table(full_name, choose_columns(names, wanted, f"the table {name}", symbol=symbol), symbol)


def _candidates(cursor: Cursor) -> str:
    cursor.execute(_CANDIDATES)
    names = [name for (name,) in cursor.fetchall()]
    return f"Tables with time, symbol and price: {', '.join(names)}" if names else "No table has time, symbol and price"


def read_table(store: DatabaseClient, table: Table) -> Iterator[tuple[list[Row], int]]:
    """Batches of rows, with the number of rows of the table. Raises OutageError, ConfigurationError.

    The server sorts the rows once and keeps the result until the end, without an open transaction: on a table without
    an index, each page of a paged query would be a scan of the table.
    """
    with store.autocommit() as connection:
        if is_pooled(connection):
            raise ConfigurationError("the rows cannot be read through a pooler: name the server itself with --from")
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(SQL("SELECT count(*) FROM {}").format(SQL(table.name)))
        (total,) = cursor.fetchone() or (0,)
        _declare(cursor, table)
    while True:
        with store.autocommit() as connection, connection.cursor() as cursor:
            cursor.execute(f"FETCH {BATCH} FROM tickpipe_import")
            rows: list[Row] = [*cursor.fetchall()]
            if not rows:
                cursor.execute("CLOSE tickpipe_import")
                return
        yield rows, total


def _declare(cursor: Cursor, table: Table) -> None:
    """Rows of the same time come in the order in which they were inserted. Views and compressed chunks have none."""
    values = [_value(ours, table) for ours in COLUMNS]
    for order in ("t.tableoid, t.ctid", "1"):
        query = SQL("DECLARE tickpipe_import NO SCROLL CURSOR WITH HOLD FOR SELECT {} FROM {} AS t ORDER BY {}, {}")
        cursor.execute("SAVEPOINT declared")
        try:
            time = Identifier("t", table.columns["time"])
            cursor.execute(query.format(SQL(", ").join(values), SQL(table.name), time, SQL(order)))
        except psycopg2.Error:
            if order == "1":
                raise
            cursor.execute("ROLLBACK TO declared")
        else:
            return


def _value(ours: str, table: Table) -> Composable:
    if ours not in table.columns:
        return Literal(table.symbol) if ours == "symbol" else SQL("NULL")
    column = Identifier("t", table.columns[ours])
    if ours != "time":
        return SQL("{}::text").format(column)
    # A time without a zone is UTC: the transaction has set TimeZone. One that no calendar has stays a text.
    return SQL(
        "CASE WHEN {0}::timestamptz BETWEEN '0001-01-01' AND '9999-12-31' "
        "THEN ((extract(epoch FROM {0}::timestamptz) * 1000000)::bigint)::text ELSE {0}::text END"
    ).format(column)


_FIND = """
SELECT format('%%I.%%I', n.nspname, c.relname),
       ARRAY(SELECT a.attname::text FROM pg_attribute AS a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND (c.relname = %s AND pg_table_is_visible(c.oid) OR n.nspname || '.' || c.relname = %s)
"""

_CANDIDATES = """
SELECT CASE WHEN pg_table_is_visible(c.oid) THEN c.relname ELSE n.nspname || '.' || c.relname END
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^(pg_|_timescaledb|information_schema)'
  AND (SELECT count(*) FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname IN ('time', 'symbol', 'price')) = 3
  AND NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'seq')
ORDER BY 1 LIMIT 10
"""
