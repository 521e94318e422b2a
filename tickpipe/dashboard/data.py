"""What the page shows, as plain values; and the database, read only and never for long."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, NamedTuple

from common.database import connections
from common.database.client import DatabaseClient
from common.settings import Secret

#: Milliseconds after which the database gives up on a question of ours.
STATEMENT_TIMEOUT = 10_000
#: The writers come first: no second core for us, and no compiling for answers of a few rows.
_SETTINGS = f"""{connections.SETTINGS}
    SET LOCAL statement_timeout = {STATEMENT_TIMEOUT};
    SET LOCAL max_parallel_workers_per_gather = 0;
    SET LOCAL jit = off;
"""


class Interval(NamedTuple):
    """A width of candles, in seconds."""

    name: str
    seconds: int


_WIDTHS = {"1m": 60, "5m": 300, "1h": 3600, "1d": 86_400}
INTERVALS = {name: Interval(name, seconds) for name, seconds in _WIDTHS.items()}


class Candle(NamedTuple):
    """One candle; `start` in seconds since 1970. `volume` is None where the feed tells none."""

    start: float
    open: float
    high: float
    low: float
    close: float
    ticks: int
    volume: float | None


class Tick(NamedTuple):
    """One stored price event; `time` (the exchange's) and `received` in seconds since 1970."""

    time: float
    received: float
    price: float
    bid: float | None
    ask: float | None
    session: int
    seq: int


class Gap(NamedTuple):
    """A span, in seconds since 1970, in which prices could not be received; `until` is None while it goes on."""

    since: float
    until: float | None
    cause: str


class Reader:
    """The database: one question at a time, in a read-only transaction, bounded in time, on one core."""

    def __init__(self, url: Secret) -> None:
        connect = partial(connections.connect, application="tickpipe dashboard")
        self._store = DatabaseClient(url, connect=connect, settings=_SETTINGS, read_only=True)
        self._lock = threading.Lock()

    def rows(self, question: str, **parameters: object) -> list[tuple[Any, ...]]:
        """The rows that answer. Raises OutageError, or ConfigurationError where the schema is missing."""
        with self._lock, self._store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute(question, parameters)
            return cursor.fetchall()

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            self._store.close()
