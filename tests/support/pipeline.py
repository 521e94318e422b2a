"""A pipeline under test: real servers, its own database and streams, and the real commands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import psycopg2
import redis

from common import feed_event, tick
from common.feed_event import FeedEvent
from common.settings import Secret
from common.streams.group import ConsumerGroup
from common.tick import Tick
from producer.spool_folder import make_folder, spool_folder
from tests.support.capture import SYMBOLS, Event, Row, row
from tests.support.processes import Processes, Running
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.valkey import ValkeyServer

GROUP = "timescale"

#: Key of the advisory lock that blocks inserts.
_INSERT_LOCK = (11, 2026)
_BLOCK_INSERTS = f"""
    CREATE OR REPLACE FUNCTION wait_for_tests() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared{_INSERT_LOCK};
        RETURN NEW;
    END $$;
    CREATE OR REPLACE TRIGGER wait_for_tests BEFORE INSERT ON {{table}}
    FOR EACH ROW EXECUTE FUNCTION wait_for_tests();
"""


@dataclass(frozen=True)
class ServerPair:
    """A real Valkey and a real PostgreSQL. Start them from the main thread."""

    valkey: ValkeyServer
    postgres: PostgresServer

    def start(self) -> None:
        """Start the servers that are not running."""
        self.valkey.start()
        self.postgres.start()

    def stop(self) -> None:
        """Stop both."""
        self.valkey.stop()
        self.postgres.stop()

    def database_url(self, database: str, user: str = "tickpipe") -> str:
        """The URL of a database in this PostgreSQL."""
        url = self.postgres.url.replace("/tickpipe?", f"/{database}?")
        return re.sub(r"user=\w+$", f"user={user}", url)


class Database:
    """A database connection, opened on first use and after an error."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection: psycopg2.extensions.connection | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def connection(self) -> psycopg2.extensions.connection:
        """The connection, in autocommit mode."""
        if self._connection is None:
            self._connection = psycopg2.connect(self.url)
            self._connection.autocommit = True
        return self._connection

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement in autocommit mode and return its rows."""
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(sql, parameters or None)
                return cursor.fetchall() if cursor.description else []
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            self.close()
            raise

    def empty(self) -> None:
        """Remove all rows and terminate other connections: a killed process may still have a transaction."""
        self.query(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        tables = self.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        names = [name for (name,) in tables if name != "tickpipe_migrations"]
        self.query(f"TRUNCATE {', '.join(names)}")

    def count(self, table: str = "prices_real_time") -> int:
        """The number of rows."""
        return int(self.query(f"SELECT count(*) FROM {table}")[0][0])

    @contextmanager
    def locked(self, table: str = "prices_real_time") -> Iterator[None]:
        """Block inserts into the table. A writer waits within its transaction, at its first row.

        A table lock would already block the consumer's check of its rights at startup.
        """
        self.query(_BLOCK_INSERTS.format(table=table))
        holder = psycopg2.connect(self.url)
        try:
            with holder.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_lock(%s, %s)", _INSERT_LOCK)
            yield
        finally:
            holder.close()

    def waiting(self) -> list[int]:
        """The pids of the backends that wait for a lock."""
        return [
            pid
            for (pid,) in self.query(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        ]


class Pipeline:
    """One test's streams, database and processes."""

    def __init__(self, servers: ServerPair, database_url: str, folder: Path) -> None:
        self.servers = servers
        self.folder = folder
        self.redis = redis.Redis.from_url(servers.valkey.url)
        self.database = Database(database_url)
        self.prices = ConsumerGroup(self.redis, "prices", GROUP, "test")
        self.feed = ConsumerGroup(self.redis, "prices:feed", GROUP, "test")
        self.processes = Processes(
            folder,
            {"REDIS_URL": servers.valkey.url, "DATABASE_URL": database_url, "TWELVE_DATA_API_KEY": "key-of-the-test"},
        )

    def __enter__(self) -> Self:
        self.redis.flushall()
        self.processes.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.processes.__exit__(kind, error, traceback)
        self.redis.close()
        self.database.close()

    # The processes.

    def producer(self, url: str, *options: str, symbols: Sequence[str] = SYMBOLS, **environ: str) -> Running:
        """Start a producer for this websocket."""
        named = ["--symbols", ",".join(symbols)] if symbols else []
        return self.processes.start(
            "producer", *named, "--url", url, "--spool-dir", str(self.folder / "spool"), *options, **environ
        )

    def spool_folder(self) -> Path:
        """The folder of the producers' spools."""
        folder = spool_folder(self.folder / "spool", Secret(self.servers.valkey.url), "prices")
        make_folder(folder)
        return folder

    def consumer(self, *options: str, **environ: str) -> Running:
        """Start a consumer."""
        return self.processes.start("consumer", *options, **environ)

    def hold_until_said(self, stream: ConsumerGroup, consumer: Running, text: str) -> None:
        """Prevent the test's pending entries from becoming idle until the consumer logs this text."""
        held: Any = [entry.id for entry in stream.read_own_pending(10_000)]

        def said() -> bool:
            self.redis.xclaim(stream.key, GROUP, stream.consumer, 0, held, idle=0, justid=True)
            return text in consumer.said()

        wait_for(said, message=f"{consumer.name} says {text!r}")

    def drain(self, timeout: float = PATIENCE) -> None:
        """Run a consumer until no entry is unprocessed."""
        status = self.consumer("--drain", "--claim-idle", "0.5").wait(timeout)
        assert status == 0, f"`consumer --drain` ended with status {status}"

    # The streams.

    def append(self, ticks: Sequence[Tick]) -> None:
        """Append ticks as a producer does."""
        self.prices.append([tick.encode(each) for each in ticks])

    def appended(self) -> int:
        """The number of entries ever appended to the price stream."""
        return self.prices.backlog().appended if self.redis.exists("prices") else 0

    def feed_entries(self) -> list[FeedEvent]:
        """The entries of the feed stream."""
        return [feed_event.decode(fields) for _, fields in cast("Any", self.redis.xrange("prices:feed"))]

    def pending(self) -> dict[str, int]:
        """The number of pending entries of each consumer of prices, if it has any."""
        self.prices.ensure_group()
        found = cast("Any", self.redis.xpending("prices", GROUP))["consumers"] or []
        return {each["name"].decode(): each["pending"] for each in found}

    def consumers(self) -> set[str]:
        """The consumer names in the group."""
        return {each["name"].decode() for each in cast("Any", self.redis.xinfo_consumers("prices", GROUP))}

    def nothing_pending(self) -> bool:
        """Whether both streams have no pending entries."""
        return self.prices.pending() == 0 and self.feed.pending() == 0

    # The rows.

    def wait_until_stored(self, count: int, timeout: float = PATIENCE) -> None:
        """Wait until there are at least this many rows."""
        wait_for(lambda: self.database.count() >= count, timeout, f"{count} rows are stored")

    def sessions(self) -> list[int]:
        """The sessions that have rows."""
        return [
            session for (session,) in self.database.query("SELECT DISTINCT session FROM prices_real_time ORDER BY 1")
        ]

    def assert_stored_exactly(self, events: Sequence[Event], *, session: int | None = None) -> None:
        """Check that the rows of the session are exactly these events, in order, numbered 1, 2, 3 …"""
        session = session if session is not None else self.sessions()[0]
        rows = self.database.query(
            "SELECT symbol, time, price, day_volume, bid, ask, exchange, seq, received_at "
            "FROM prices_real_time WHERE session = %s ORDER BY seq",
            session,
        )
        found: list[Row] = [values[:7] for values in rows]
        wanted = [row(event) for event in events]
        for number, (value, other) in enumerate(zip(found, wanted, strict=False), 1):
            assert value == other, f"row {number}: {value} is stored, {other} was sent"
        assert len(found) == len(wanted), f"{len(found)} rows are stored, {len(wanted)} events were sent"
        assert [values[7] for values in rows] == list(range(1, len(events) + 1)), "seq is not 1, 2, 3 …"
        received: list[datetime] = [values[8] for values in rows]
        assert all(early < late for early, late in pairwise(received)), "received_at is not strictly increasing"

    def feed_events(self, event: str) -> list[dict[str, Any]]:
        """The details of the feed events of one kind, in order."""
        return [
            detail
            for (detail,) in self.database.query(
                "SELECT detail FROM feed_events WHERE event = %s ORDER BY session, number", event
            )
        ]

    def last_seqs(self) -> list[int]:
        """The last seq of each ended session."""
        return [int(detail["last_seq"]) for detail in self.feed_events("stopped")]
