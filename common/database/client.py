"""The database as every process uses it: transactions on one connection, which is opened again after an outage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2 names its class so
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from common.database.connections import SETTINGS, check_url, connect
from common.database.errors import BAD_DATA, translate
from common.errors import DatabaseOutageError, UntrustedError
from common.settings import Secret

Isolation = Literal["READ COMMITTED", "REPEATABLE READ"]


class DatabaseClient:
    """Connects at the first transaction, and again after every outage. Not for several threads at once."""

    def __init__(
        self,
        url: Secret,
        *,
        connect: Callable[[Secret], Connection] = connect,
        settings: str = SETTINGS,
        read_only: bool = False,
    ) -> None:
        """`settings`: SQL that begins each transaction. `read_only`: the database rejects every change.

        Raises ConfigurationError for an invalid URL.
        """
        check_url(url)
        self._url = url
        self._connect = connect
        self._settings = settings
        self._access = " READ ONLY" if read_only else ""
        self._connection: Connection | None = None
        self._ever_connected = False

    def close(self) -> None:
        """Close the connection. The next transaction opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def transaction(self, isolation: Isolation = "READ COMMITTED") -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back after any exception.

        Raises DatabaseOutageError for an outage, and if a disk or standby that synchronous_commit requires may lack the
        commit. Raises ConfigurationError for a missing right or table. psycopg2's DataError and IntegrityError pass
        through.
        """
        with self._translated() as connection, connection.cursor() as cursor:
            connection.notices.clear()
            # One round trip.
            cursor.execute(f"BEGIN ISOLATION LEVEL {isolation}{self._access};{self._settings}")
            try:
                yield connection
            except BaseException:
                with suppress(psycopg2.Error):  # the connection is lost: the first error has the reason
                    cursor.execute("ROLLBACK")
                raise
            _commit(connection, cursor)

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """A connection for statements that cannot run in a transaction. It has none of our settings.

        Raises the same errors as `transaction`.
        """
        with self._translated() as connection:
            yield connection

    def ping(self) -> bool:
        """Whether the database answers."""
        try:
            with self.transaction() as connection, connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except DatabaseOutageError:
            return False
        return True

    @contextmanager
    def _translated(self) -> Iterator[Connection]:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._open()
            yield self._connection
        except BAD_DATA:
            raise
        except psycopg2.Error as error:
            ours = translate(error, self._connection)
            self.close()
            raise ours from error

    def _open(self) -> Connection:
        """Connect. A TLS error at the first attempt needs a person; later, the server may recover."""
        try:
            connection = self._connect(self._url)
        except UntrustedError as error:
            if not self._ever_connected:
                raise
            raise DatabaseOutageError(str(error)) from None
        self._ever_connected = True
        return connection


def _commit(connection: Connection, cursor: Cursor) -> None:
    """COMMIT. A warning says that the commit may not be on every disk that synchronous_commit requires."""
    connection.notices.clear()
    cursor.execute("COMMIT")
    if connection.notices:
        warning = " ".join(" ".join(connection.notices).split())
        raise DatabaseOutageError(f"the database committed with a warning, so nothing is acknowledged: {warning}")
    if cursor.statusmessage != "COMMIT":
        raise DatabaseOutageError(f"the database answered COMMIT with {cursor.statusmessage}: nothing is stored")
