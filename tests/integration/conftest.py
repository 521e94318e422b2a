"""Real servers for the integration tests, started by the tests themselves."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NoReturn

import psycopg2
import pytest

from common.database.client import DatabaseClient
from common.database.migrations import migrate, read_migrations
from common.errors import ConfigurationError
from common.settings import Secret
from tests.support.folders import temporary_folder
from tests.support.pipeline import Database, Pipeline, ServerPair
from tests.support.processes import Processes
from tests.support.timescaledb import GivenServer, NpmServer, install_paused
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.valkey import ValkeyServer

_NUMBERS = itertools.count(1)


def skip_or_fail(error: ConfigurationError, what: str) -> NoReturn:
    """Fail if the variable CI is set, otherwise skip the test: `what` is not installed."""
    if os.environ.get("CI"):
        raise error
    pytest.skip(f"no {what} here: {error}")


@contextmanager
def _server_pair() -> Iterator[ServerPair]:
    """Servers in a temporary folder. Tests copy their database `tickpipe`, which has the schema."""
    with temporary_folder() as folder:
        try:
            pair = ServerPair(ValkeyServer(folder / "valkey"), PostgresServer(folder / "postgres-18"))
            pair.start()
        except ConfigurationError as error:
            skip_or_fail(error, "real servers")
        try:
            with closing(psycopg2.connect(pair.postgres.url)) as connection, connection:
                migrate(connection, read_migrations())
            yield pair
        finally:
            pair.stop()


@contextmanager
def _database(pair: ServerPair, template: str) -> Iterator[str]:
    """The URL of a new database. It is dropped at the end."""
    name = f"test_{next(_NUMBERS)}"
    with closing(Database(pair.database_url("postgres"))) as admin:
        admin.query(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield pair.database_url(name)
        finally:
            admin.close()  # the server may have been restarted
            admin.query(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def servers() -> Iterator[ServerPair]:
    """Shared servers. A test must not stop them."""
    with _server_pair() as pair:
        yield pair


@pytest.fixture(scope="module")
def _servers_of_the_module() -> Iterator[ServerPair]:
    with _server_pair() as pair:
        yield pair


@pytest.fixture
def breakable_servers(_servers_of_the_module: ServerPair) -> Iterator[ServerPair]:
    """Servers that a test may stop and kill. They are running when the test starts."""
    _servers_of_the_module.start()
    yield _servers_of_the_module
    _servers_of_the_module.start()


@pytest.fixture(scope="session")
def _common_url(servers: ServerPair) -> Iterator[str]:
    with _database(servers, "tickpipe") as url:
        yield url


@pytest.fixture
def database(_common_url: str) -> Iterator[Database]:
    """A shared database with the schema and no rows, for tests that do not change the schema."""
    with closing(Database(_common_url)) as database:
        database.empty()
        yield database


@pytest.fixture
def fresh_database(servers: ServerPair) -> Iterator[Database]:
    """A new database with the schema."""
    with _database(servers, "tickpipe") as url, closing(Database(url)) as database:
        yield database


@pytest.fixture(scope="module")
def database_of_the_module(servers: ServerPair) -> Iterator[Database]:
    """A database with the schema, shared by the tests of a module."""
    with _database(servers, "tickpipe") as url, closing(Database(url)) as database:
        yield database


@pytest.fixture
def empty_database(servers: ServerPair) -> Iterator[Database]:
    """A new database without the schema."""
    with _database(servers, "template1") as url, closing(Database(url)) as database:
        yield database


@pytest.fixture
def pipeline(servers: ServerPair, database: Database, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with empty streams and a shared database without rows."""
    with Pipeline(servers, database.url, tmp_path) as pipeline:
        yield pipeline


@pytest.fixture
def fresh_pipeline(servers: ServerPair, fresh_database: Database, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with empty streams and a new database."""
    with Pipeline(servers, fresh_database.url, tmp_path) as pipeline:
        yield pipeline


@pytest.fixture
def empty_pipeline(servers: ServerPair, empty_database: Database, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with empty streams and a database without the schema."""
    with Pipeline(servers, empty_database.url, tmp_path) as pipeline:
        yield pipeline


@pytest.fixture
def breakable_pipeline(breakable_servers: ServerPair, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with servers that the test may stop and kill."""
    with _database(breakable_servers, "tickpipe") as url, Pipeline(breakable_servers, url, tmp_path) as pipeline:
        yield pipeline
        breakable_servers.start()


@pytest.fixture(scope="session")
def _timescaledb() -> Iterator[GivenServer | NpmServer]:
    """One TimescaleDB for each xdist worker that needs it. It takes 3 s and 0.8 GB to start."""
    url = os.environ.get("TIMESCALEDB_URL")
    try:
        server = GivenServer(url) if url else NpmServer()
    except ConfigurationError as error:
        skip_or_fail(error, "TimescaleDB")
    with closing(server):
        yield server


@pytest.fixture
def timescale(_timescaledb: GivenServer | NpmServer) -> Iterator[Database]:
    """A new database on a real TimescaleDB, without the schema and the extension."""
    with _timescaledb.database() as url, closing(Database(url)) as database:
        yield database


@pytest.fixture(scope="module")
def timescale_of_the_module(_timescaledb: GivenServer | NpmServer) -> Iterator[Database]:
    """A TimescaleDB database shared by the tests of a module. They must not use `timescale` as well."""
    with _timescaledb.database() as url, closing(Database(url)) as database:
        yield database


@pytest.fixture
def timescale_pipeline(servers: ServerPair, timescale: Database, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with empty streams and an empty TimescaleDB."""
    with Pipeline(servers, timescale.url, tmp_path) as pipeline:
        yield pipeline


@pytest.fixture
def new_role(servers: ServerPair) -> Iterator[Callable[[], str]]:
    """Creates roles with the right to log in and no other. They are dropped at the end."""
    roles: list[str] = []

    def make() -> str:
        roles.append(f"role_{next(_NUMBERS)}")
        admin.query(f"CREATE ROLE {roles[-1]} LOGIN")
        return roles[-1]

    with closing(Database(servers.database_url("postgres"))) as admin:
        yield make
        for role in roles:
            admin.query(f"DROP ROLE {role}")


@pytest.fixture
def store(database: Database) -> Iterator[DatabaseClient]:
    store = DatabaseClient(Secret(database.url))
    yield store
    store.close()


@pytest.fixture
def hypertable(timescale: Database) -> Database:
    """A TimescaleDB database with the schema. Only the test runs its jobs."""
    install_paused(timescale)
    return timescale


@pytest.fixture(params=["plain", "timescale"])
def backend(request: pytest.FixtureRequest) -> Database:
    """A database with the schema, on PostgreSQL and on TimescaleDB."""
    found: Database = request.getfixturevalue("database" if request.param == "plain" else "hypertable")
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder


@pytest.fixture
def processes(tmp_path: Path, folder: Path) -> Iterator[Processes]:  # noqa: ARG001  they end before their folder goes
    with Processes(tmp_path, {}) as processes:
        yield processes
