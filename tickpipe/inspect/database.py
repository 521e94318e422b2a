"""Read-only access to the database that never competes with the consumers for long."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from common.database import connections
from common.database.client import DatabaseClient
from common.settings import Secret

#: Milliseconds after which the database cancels a query.
STATEMENT_TIMEOUT = 10_000
#: The consumers need the cores: no parallel workers, and no compilation for results of a few rows.
_SETTINGS = f"""{connections.SETTINGS}
    SET LOCAL statement_timeout = {STATEMENT_TIMEOUT};
    SET LOCAL max_parallel_workers_per_gather = 0;
    SET LOCAL jit = off;
"""


class DatabaseReader:
    """Runs one query at a time. Thread-safe."""

    def __init__(self, store: DatabaseClient) -> None:
        self._store = store
        self._lock = threading.Lock()

    @classmethod
    def read_only(cls, url: Secret, *, application: str = "tickpipe dashboard") -> DatabaseReader:
        """A connection of its own: read-only transactions, limited in time, on one core."""
        connect = partial(connections.connect, application=application)
        return cls(DatabaseClient(url, connect=connect, settings=_SETTINGS, read_only=True))

    def rows(self, query: str, **parameters: object) -> list[tuple[Any, ...]]:
        """The rows of a query. Raises OutageError, or ConfigurationError if the schema is missing."""
        with self._lock, self._store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._store.close()
