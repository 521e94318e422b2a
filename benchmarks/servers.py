"""The servers of one run, each client's database and stream in them, and what the database says of each commit."""

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
from common.errors import ConfigurationError
from common.settings import Secret
from consumer.store import PriceStore
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.valkey import ValkeyServer

ROOT = Path(__file__).resolve().parent.parent
GROUP = "bench"
STREAM = "tickpipe-bench"
#: Whose tables are emptied before each run.
DATABASE = "tickpipe_bench"
#: The tutorial's table: four columns, no key.
TUTORIAL_TABLE = "CREATE TABLE tutorial (time timestamptz NOT NULL, symbol text, price float8, day_volume float8)"


def source_of(count: int, first: int = 0) -> str:
    """The key of the entries that a stream is filled with."""
    return f"{STREAM}:{first}+{count}"


class Bench:
    """Both servers, and a database on them with the schema in it; more databases where tables of a size are wanted."""

    def __init__(self, redis_url: str, database_url: str, home: Path) -> None:
        self.home = home
        self.redis_url = redis_url
        self.redis = redis.Redis.from_url(redis_url, protocol=2)
        self._database_url = database_url
        self._connections: dict[str, psycopg2.extensions.connection] = {}

    # Databases.

    def database_url(self, database: str) -> str:
        """The URL of one of our databases."""
        return re.sub(r"^(\w+://[^/?]*)(/[^?]*)?", rf"\g<1>/{database}", self._database_url)

    def connection(self, database: str) -> psycopg2.extensions.connection:
        """A connection to one of our databases, in autocommit."""
        if database not in self._connections:
            connection = psycopg2.connect(self.database_url(database))
            connection.autocommit = True
            self._connections[database] = connection
        return self._connections[database]

    def query(self, database: str, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of one statement, committed at once."""
        with self.connection(database).cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, database: str) -> None:
        """A new database with the schema and the tutorial's table in it."""
        connection = psycopg2.connect(self._database_url)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
                cursor.execute(f"CREATE DATABASE {database}")
        finally:
            connection.close()
        store = PriceStore(Secret(self.database_url(database)))
        migrations.apply(store)
        store.close()
        self.query(database, TUTORIAL_TABLE)

    def drop_databases(self) -> None:
        """Leave nothing of ours."""
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
        """No rows."""
        self.query(database, "TRUNCATE prices_real_time, feed_events, dead_letters, tutorial")

    def settle(self, database: str) -> None:
        """A checkpoint, so that every case begins with the same debts: none."""
        with suppress(psycopg2.errors.InsufficientPrivilege):
            self.query(database, "CHECKPOINT")

    def commits(self, database: str, condition: str = "true", table: str = "prices_real_time") -> list[Commit]:
        """When the rows that meet the condition were committed, and how many by each transaction."""
        found = self.query(
            database,
            "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8, count(*) "
            f"FROM {table} WHERE {condition} GROUP BY xmin ORDER BY 1",
        )
        return [Commit(at, rows) for at, rows in found]

    # Streams.

    def empty_stream(self) -> None:
        """No stream, no groups."""
        self.redis.delete(STREAM, f"{STREAM}:feed")

    def fill_stream(self, count: int, first: int = 0) -> None:
        """A stream of `count` entries, those after `first`, all unread and no group; loaded once, then copied."""
        self.empty_stream()
        source = source_of(count, first)
        if not self.redis.exists(source):
            ticks.load(self.redis, source, count, first)
        self.redis.copy(source, STREAM)

    # Clients.

    def environment(self, database: str) -> dict[str, str]:
        """All that a client gets to know: its servers and its stream."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "REDIS_URL": self.redis_url,
            "DATABASE_URL": self.database_url(database),
            "PRICE_STREAM": STREAM,
            "CONSUMER_GROUP": GROUP,
            "SPOOL_DIR": str(self.home / "spool"),
            "TWELVE_DATA_API_KEY": "key-of-the-benchmark",
        }

    def consumer(self, database: str, batch: int = 1000, *options: str) -> Client:
        """Start a real consumer."""
        command = [str(Path(sys.executable).with_name("consumer")), "--max-batch-size", str(batch), *options]
        return Client(command, self.environment(database), self.home)

    def producer(self, url: str) -> Client:
        """Start a real producer on this websocket."""
        command = [str(Path(sys.executable).with_name("producer")), "--symbols", "BTC/USD,AAPL", "--url", url]
        return Client(command, self.environment("postgres"), self.home)

    def peer(self, name: str, database: str, *arguments: object) -> Client:
        """Start one of benchmarks/peers/."""
        command = [sys.executable, "-m", f"benchmarks.peers.{name}", *map(str, arguments)]
        return Client(command, {**self.environment(database), "PYTHONPATH": str(ROOT)}, self.home)


@contextmanager
def bench(home: Path, **settings_of_postgres: str) -> Iterator[Bench]:
    """The servers of REDIS_URL and DATABASE_URL, or embedded ones in `home`. From the main thread."""
    environ = os.environ
    given_redis = settings.read_secret(environ, "REDIS_URL")
    given_database = settings.read_secret(environ, "DATABASE_URL")
    valkey = None if given_redis else ValkeyServer(home / "valkey", settings=_QUIET_VALKEY)
    postgres = None if given_database else PostgresServer(home / "postgres", settings=_STAMPING | settings_of_postgres)
    servers = [server for server in (valkey, postgres) if server is not None]
    try:
        for server in servers:
            server.start()
        found = Bench(
            given_redis.reveal() if given_redis else (valkey or _never()).url,
            given_database.reveal() if given_database else (postgres or _never()).url,
            home,
        )
        try:
            found.create_database(DATABASE)
            if found.query(DATABASE, "SHOW track_commit_timestamp") != [("on",)]:
                raise ConfigurationError("set track_commit_timestamp = on in this PostgreSQL: all rates rest on it")
            yield found
        finally:
            found.drop_databases()
    finally:
        for server in servers:
            server.stop()


def _never() -> Any:
    raise AssertionError("a server is given or started")


#: The append-only file is not rewritten behind a measurement's back.
_QUIET_VALKEY = {"auto-aof-rewrite-percentage": "0"}
#: When each row was committed, and how long the flushes took.
_STAMPING = {"track_commit_timestamp": "on", "track_wal_io_timing": "on"}
