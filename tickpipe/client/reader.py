"""Reads rows as Arrow record batches: by COPY, or in portions through a cursor of the server where COPY fails."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa
from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so
from psycopg2.extensions import make_dsn

from common.database import connections
from common.database.client import DatabaseClient
from common.database.connections import SETTINGS
from common.database.errors import one_line
from common.errors import DatabaseOutageError
from common.settings import Secret
from tickpipe.inspect.database import DatabaseReader

#: Rows of one batch that is read through a cursor.
PORTION = 20_000
#: Bytes of one batch that is read by COPY. Larger ones take longer to convert.
BATCH_BYTES = 4 << 20
APPLICATION = "tickpipe client"
#: The reader of a batch may take its time until it asks for the next one.
_SETTINGS = f"{SETTINGS} SET LOCAL idle_in_transaction_session_timeout = 0;"
_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_ADBC_ERRORS = (adbc.Error, pa.ArrowException, OSError)

Parameters = Mapping[str, object]


class Reader:
    """Read-only access to one database. Thread-safe. Each large read has a connection of its own."""

    def __init__(self, url: Secret) -> None:
        """Raises ConfigurationError for an invalid URL."""
        self.url = url
        self._small = DatabaseReader(self.client())
        self._can_copy = True
        self.has_stored_candles = False

    def close(self) -> None:
        """Close the connection of small reads."""
        self._small.close()

    def check(self) -> None:
        """Connect, and find out whether COPY works, and whether TimescaleDB stores candles of an hour and a day.

        Raises OutageError, ConfigurationError.
        """
        query = "SELECT version(), to_regclass('aggregate_1d') IS NOT NULL"
        ((version, self.has_stored_candles),) = self.rows(query)
        self._can_copy = "Emscripten" not in version  # PostgreSQL in WebAssembly dies of a COPY

    def rows(self, query: str, **parameters: object) -> list[tuple[Any, ...]]:
        """The rows of a small result. Raises OutageError, ConfigurationError."""
        return self._small.rows(query, **parameters)

    def table(self, schema: pa.Schema, query: str, **parameters: object) -> pa.RecordBatch:
        """The rows of a small result as one batch. Raises OutageError, ConfigurationError."""
        return _batch(self.rows(query, **parameters), schema)

    def batches(self, schema: pa.Schema, query: str, *runs: Parameters) -> Iterator[pa.RecordBatch]:
        """The rows of the query with the parameters of each run, one run after the other, in one snapshot.

        The query must return the types of the schema. Raises OutageError, ConfigurationError.
        """
        if not self._can_copy:
            yield from self._in_portions(schema, query, runs)
            return
        rest: Iterator[pa.RecordBatch]
        with closing(self._copied(schema, query, runs)) as copied:
            try:
                first = next(copied, None)
            except _ADBC_ERRORS:  # such as a pooler without COPY. Any other reason is an error below, too
                first, rest = None, self._in_portions(schema, query, runs)
            else:
                rest = copied
            try:
                if first is not None:
                    yield first
                yield from rest
            except _ADBC_ERRORS as error:
                message = one_line(error).partition(" Query was:")[0]
                raise DatabaseOutageError(f"the database: {message}") from None

    def _copied(self, schema: pa.Schema, query: str, runs: Sequence[Parameters]) -> Generator[pa.RecordBatch]:
        statements = self._statements(query, runs)
        dsn = make_dsn(self.url.reveal(), application_name=APPLICATION, connect_timeout=5)
        with adbc.connect(dsn, autocommit=False) as connection, connection.cursor() as cursor:
            try:
                cursor.execute(_SNAPSHOT)
                cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)})
                for statement in statements:
                    cursor.execute(statement)
                    for batch in cursor.fetch_record_batch():
                        yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
            except GeneratorExit:
                with suppress(adbc.Error):
                    cursor.adbc_cancel()
                raise

    def _statements(self, query: str, runs: Sequence[Parameters]) -> list[str]:
        """The query with each run's parameters as psycopg2 sends them: COPY has none of its own."""
        with closing(self.client()) as client, client.transaction() as connection, connection.cursor() as cursor:
            return [cursor.mogrify(query, run).decode() for run in runs]

    def _in_portions(self, schema: pa.Schema, query: str, runs: Sequence[Parameters]) -> Iterator[pa.RecordBatch]:
        with (
            closing(self.client()) as client,
            client.transaction("REPEATABLE READ") as connection,
            connection.cursor() as cursor,
        ):
            for run in runs:
                cursor.execute(f"DECLARE portions NO SCROLL CURSOR FOR {query}", run)
                for rows in iter(partial(_portion, cursor), []):
                    yield _batch(rows, schema)
                cursor.execute("CLOSE portions")

    def client(self) -> DatabaseClient:
        """A connection of its own, opened on first use. Its transactions only read."""
        connect = partial(connections.connect, application=APPLICATION)
        return DatabaseClient(self.url, connect=connect, settings=_SETTINGS, read_only=True)


def _portion(cursor: Cursor) -> list[tuple[Any, ...]]:
    cursor.execute("FETCH %s FROM portions", (PORTION,))
    return cursor.fetchall()


def _batch(rows: Sequence[Sequence[object]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
