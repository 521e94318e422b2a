"""The Redis and PostgreSQL servers of a run, with the clients' databases and streams."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
import redis

from benchmarks import ticks
from benchmarks.clients import Client
from benchmarks.report import Commit
from common import settings
from common.database import migrations
from common.database.client import DatabaseClient
from common.errors import ConfigurationError
from common.settings import Secret
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.valkey import ValkeyServer

ROOT = Path(__file__).resolve().parent.parent
GROUP = "bench"
STREAM = "tickpipe-bench"
#: Database whose tables are emptied before each run.
DATABASE = "tickpipe_bench"
#: The tutorial's table: four columns, no key.
TUTORIAL_TABLE = "CREATE TABLE tutorial (time timestamptz NOT NULL, symbol text, price float8, day_volume float8)"


def source_of(count: int, first: int = 0) -> str:
    """Key of the stream that holds the prepared entries."""
    return f"{STREAM}:{first}+{count}"


class Bench:
    """Both servers. Tables of a given size are in databases of their own."""

    def __init__(self, redis_url: str, database_url: str, folder: Path) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.redis = redis.Redis.from_url(redis_url, protocol=2)
        self._database_url = database_url
        self._connections: dict[str, psycopg2.extensions.connection] = {}

    # Databases.

    def database_url(self, database: str) -> str:
        """URL of a benchmark database."""
        return re.sub(r"^(\w+://[^/?]*)(/[^?]*)?", rf"\g<1>/{database}", self._database_url)

    def connection(self, database: str) -> psycopg2.extensions.connection:
        """Connection to a benchmark database, in autocommit mode."""
        if database not in self._connections:
            connection = psycopg2.connect(self.database_url(database))
            connection.autocommit = True
            self._connections[database] = connection
        return self._connections[database]

    def query(self, database: str, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement, commit it, and return its rows."""
        with self.connection(database).cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, database: str) -> None:
        """Create a database with the schema and the tutorial's table."""
        connection = psycopg2.connect(self._database_url)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
                cursor.execute(f"CREATE DATABASE {database}")
        finally:
            connection.close()
        store = DatabaseClient(Secret(self.database_url(database)))
        migrations.apply(store)
        store.close()
        self.query(database, TUTORIAL_TABLE)

    def drop_databases(self) -> None:
        """Remove the benchmark's databases and streams."""
        for connection in self._connections.values():
            connection.close()
        connection = psycopg2.connect(self._database_url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            for database in self._connections:
                cursor.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        connection.close()
        self.redis.delete(*self.redis.keys(f"{STREAM}*") or [STREAM])

    def empty(self, database: str) -> None:
        """Empty all tables."""
        self.query(database, "TRUNCATE prices_real_time, feed_events, dead_letters, tutorial")

    def settle(self, database: str) -> None:
        """Run a checkpoint, so that every case starts without pending writes."""
        with suppress(psycopg2.errors.InsufficientPrivilege):
            self.query(database, "CHECKPOINT")

    def commits(self, database: str, condition: str = "true", table: str = "prices_real_time") -> list[Commit]:
        """Commit time and row count of each transaction, for the rows that meet the condition."""
        found = self.query(
            database,
            "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8, count(*) "
            f"FROM {table} WHERE {condition} GROUP BY xmin ORDER BY 1",
        )
        return [Commit(at, rows) for at, rows in found]

    # Streams.

    def empty_stream(self) -> None:
        """Delete the stream and its groups, and those of all channels."""
        channels = [*self.redis.scan_iter(f"{STREAM}:{{*"), *self.redis.scan_iter(f"{{{STREAM}}}*")]
        self.redis.delete(STREAM, f"{STREAM}:feed", *channels)

    def fill_stream(self, count: int, first: int = 0) -> None:
        """Fill the stream with `count` unread entries after number `first`. Entries are loaded once, then copied."""
        self.empty_stream()
        source = source_of(count, first)
        if not self.redis.exists(source):
            ticks.load(self.redis, source, count, first)
        self.redis.copy(source, STREAM)

    # Clients.

    def environment(self, database: str) -> dict[str, str]:
        """Environment of a client: its servers and its stream."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "REDIS_URL": self.redis_url,
            "DATABASE_URL": self.database_url(database),
            "PRICE_STREAM": STREAM,
            "CONSUMER_GROUP": GROUP,
            "SPOOL_DIR": str(self.folder / "spool"),
            "TWELVE_DATA_API_KEY": "key-of-the-benchmark",
        }

    def consumer(self, database: str, batch: int = 1000, *options: str) -> Client:
        """Start a consumer."""
        command = [str(Path(sys.executable).with_name("consumer")), "--max-batch-size", str(batch), *options]
        return Client(command, self.environment(database), self.folder)

    def producer(self, url: str, *options: str) -> Client:
        """Start a producer with this websocket URL."""
        command = [str(Path(sys.executable).with_name("producer")), "--symbols", "BTC/USD,AAPL", "--url", url, *options]
        return Client(command, self.environment("postgres"), self.folder)

    def peer(self, name: str, database: str, *arguments: object) -> Client:
        """Start a client of benchmarks/peers/."""
        command = [sys.executable, "-m", f"benchmarks.peers.{name}", *map(str, arguments)]
        return Client(command, {**self.environment(database), "PYTHONPATH": str(ROOT)}, self.folder)


@contextmanager
def bench(folder: Path, **settings_of_postgres: str) -> Iterator[Bench]:
    """The servers of REDIS_URL and DATABASE_URL, or embedded ones in `folder`. Call it from the main thread."""
    environ = os.environ
    given_redis = settings.read_secret(environ, "REDIS_URL")
    given_database = settings.read_secret(environ, "DATABASE_URL")
    valkey = None if given_redis else ValkeyServer(folder / "valkey", settings=_QUIET_VALKEY)
    postgres = (
        None if given_database else PostgresServer(folder / "postgres", settings=_STAMPING | settings_of_postgres)
    )
    servers = [server for server in (valkey, postgres) if server is not None]
    try:
        for server in servers:
            server.start()
        found = Bench(
            given_redis.reveal() if given_redis else (valkey or _never()).url,
            given_database.reveal() if given_database else (postgres or _never()).url,
            folder,
        )
        try:
            found.create_database(DATABASE)
            if found.query(DATABASE, "SHOW track_commit_timestamp") != [("on",)]:
                raise ConfigurationError(
                    "track_commit_timestamp is off. Set it to on in PostgreSQL: all rates use commit times"
                )
            yield found
        finally:
            found.drop_databases()
    finally:
        for server in servers:
            server.stop()


def _never() -> Any:
    raise AssertionError("each server is either given or started")


#: Disables rewrites of the append-only file, which would disturb a measurement.
_QUIET_VALKEY = {"auto-aof-rewrite-percentage": "0"}
#: Records the commit time of each transaction and the duration of WAL flushes.
_STAMPING = {"track_commit_timestamp": "on", "track_wal_io_timing": "on"}
