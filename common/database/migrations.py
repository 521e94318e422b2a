"""Applies sql/: numbered plain SQL, in order, each file once, under an advisory lock.

`NNNN_name.sql` is for every home, `NNNN_name.timescaledb.sql` for one on TimescaleDB. A file that begins with
`-- outside a transaction` is run statement by statement (each ends with a line's last `;`), as psql would; cut short,
it is run again.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count, groupby
from pathlib import Path
from typing import NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2 names its class so
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from common.database.client import DatabaseClient
from common.database.connections import is_pooled
from common.errors import ConfigurationError, OutageError

logger = logging.getLogger("common.database.migrations")

#: Beside the packages, in a checkout and in an installed wheel alike.
SQL_FOLDER = Path(__file__).resolve().parent.parent.parent / "sql"
#: Keys of the advisory locks: of a transaction that applies files ("tick" in ASCII), and of a process that applies all.
_LOCK, _TURN = 0x7469636B, 0x7469636C
#: Seconds between two tries for the lock behind a pooler.
_TRY_EVERY = 0.2
_WAITING = "schema: another process applies it; waiting until that ends"
_OUTSIDE = "-- outside a transaction"


class Migration(NamedTuple):
    """One file of sql/."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Tells a changed file."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def timescaledb(self) -> bool:
        """Whether it is for TimescaleDB alone."""
        return self.name.endswith(".timescaledb.sql")

    @property
    def outside(self) -> bool:
        """Whether its statements run outside a transaction."""
        return self.sql.startswith(_OUTSIDE)

    @property
    def statements(self) -> list[str]:
        """What is sent to the database at once: the whole file, or each statement."""
        parts = re.split(r";[ \t]*$", self.sql, flags=re.MULTILINE) if self.outside else [self.sql]
        return [part.strip() for part in parts if part.strip()]


def read_migrations(folder: Path = SQL_FOLDER) -> list[Migration]:
    """The migrations in the folder, in order."""
    return [Migration(path.name, path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.sql"))]


def apply(
    database: DatabaseClient,
    *,
    to_timescaledb: bool = False,
    chunk_interval: str = "",
    sleep: Callable[[float], object] = time.sleep,
) -> list[str]:
    """Apply sql/ through the store's connection; returns the files' names. Several at once are fine.

    Where TimescaleDB is available, ticks live in a hypertable from the start; an ordinary table becomes one with
    `to_timescaledb` alone: that locks it, and takes a while. `chunk_interval`: a PostgreSQL interval; "" leaves it.
    Raises ConfigurationError where the role may not, or where an applied file has changed since; DatabaseOutageError.
    """
    with database.transaction() as connection, connection.cursor() as cursor:
        wanted = to_timescaledb or not _has_ticks(cursor)
    refused = _switch_on_timescaledb(database) if wanted else None
    done: list[str] = []
    with _turn(database, sleep):
        for outside, group in groupby(read_migrations(), key=lambda migration: migration.outside):
            with database.autocommit() if outside else database.transaction() as connection:
                done += migrate(connection, list(group), to_timescaledb=to_timescaledb, chunk_interval=chunk_interval)
    with database.transaction() as connection, connection.cursor() as cursor:
        logger.info("schema: %s; %s", f"applied {', '.join(done)}" if done else "up to date", _home(cursor))
        hypertable = is_hypertable(cursor)
        if hypertable and chunk_interval:
            cursor.execute("SELECT set_chunk_time_interval('prices_real_time', %s::interval)", (chunk_interval,))
    if wanted and not hypertable and refused:
        logger.warning("TimescaleDB is available here and cannot be switched on (%s)", _first_line(refused))
    if to_timescaledb and not hypertable:
        raise ConfigurationError("TimescaleDB is not available in this database: install it on the server first")
    return done


def migrate(
    connection: Connection, migrations: list[Migration], *, to_timescaledb: bool = False, chunk_interval: str = ""
) -> list[str]:
    """Apply what is not applied yet, in the connection's transaction, or where that is off, statement by statement."""
    with _refusals(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        applied = _applied(cursor)
        _refuse_changed(migrations, applied)
        timescaledb = _has_timescaledb(cursor) and (to_timescaledb or not _has_ticks(cursor) or is_hypertable(cursor))
        todo = [each for each in migrations if each.name not in applied and (timescaledb or not each.timescaledb)]
        if chunk_interval:
            cursor.execute("SELECT set_config('tickpipe.chunk_interval', %s::interval::text, true)", (chunk_interval,))
        for migration in todo:
            for statement in migration.statements:
                cursor.execute(statement)
            cursor.execute(
                "INSERT INTO tickpipe_migrations (name, checksum) VALUES (%s, %s)", (migration.name, migration.checksum)
            )
    return [migration.name for migration in todo]


@contextmanager
def _refusals() -> Iterator[None]:
    """What trying again would not help, as ConfigurationErrors."""
    try:
        yield
    except psycopg2.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"the database role may not apply the schema ({_first_line(error)}): "
            "run `tickpipe migrate` once with a DATABASE_URL whose role may"
        ) from error
    except psycopg2.errors.InvalidSchemaName as error:
        raise ConfigurationError(
            f"the schema cannot be applied ({_first_line(error)}): the role may use no schema of its search_path. "
            "GRANT USAGE ON SCHEMA public to it, or set its search_path"
        ) from error
    except psycopg2.errors.InvalidDatetimeFormat as error:
        raise ConfigurationError(f"{_first_line(error)}: an interval looks like '1 day' or '6 hours'") from error
    except psycopg2.errors.FeatureNotSupported as error:
        raise ConfigurationError(
            f"the schema cannot be applied ({_first_line(error)}): it needs TimescaleDB 2.13 or newer, the Community "
            "edition (timescaledb.license = timescale)"
        ) from error
    except psycopg2.ProgrammingError as error:
        raise ConfigurationError(
            f"the schema cannot be applied ({_first_line(error)}): rename what is there, or use another database"
        ) from error


@contextmanager
def _turn(database: DatabaseClient, sleep: Callable[[float], object]) -> Iterator[None]:
    """One process at a time, from the first file to the last: not all files are applied in one transaction."""
    with database.transaction() as connection:
        pooled = is_pooled(connection)
    with _lock_of_transaction(database, sleep) if pooled else _lock_of_session(database):
        yield


@contextmanager
def _lock_of_session(database: DatabaseClient) -> Iterator[None]:
    with database.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", (_TURN,))
        if cursor.fetchone() != (True,):
            logger.info(_WAITING)
            cursor.execute("SELECT pg_advisory_lock(%s)", (_TURN,))
    try:
        yield
    except BaseException:
        database.close()  # and with it the lock
        raise
    with database.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_unlock(%s)", (_TURN,))


@contextmanager
def _lock_of_transaction(database: DatabaseClient, sleep: Callable[[float], object]) -> Iterator[None]:
    """Behind a pooler a session is shared: an open transaction on a second connection holds the lock.

    A process that waits for the lock holds no connection of the pool: the one that works needs two.
    """
    with closing(database.second()) as holder:
        for tries in count():
            with holder.transaction() as connection, connection.cursor() as cursor:
                cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (_TURN,))
                if cursor.fetchone() == (True,):
                    yield
                    return
            if tries == 0:
                logger.info(_WAITING)
            sleep(_TRY_EVERY)


def _switch_on_timescaledb(database: DatabaseClient) -> Exception | None:
    """Install the extension where it is available. Returns why it could not be."""
    try:  # in a transaction of its own: where it is not preloaded, that ends the connection
        with database.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            cursor.execute(
                "SELECT FROM pg_available_extensions WHERE name = 'timescaledb' AND installed_version IS NULL"
            )
            if cursor.fetchone() is not None:
                cursor.execute("CREATE EXTENSION timescaledb")
    except (OutageError, psycopg2.Error) as error:
        return error
    return None


def _home(cursor: Cursor) -> str:
    if is_hypertable(cursor):
        return "ticks live in a hypertable (TimescaleDB)"
    if not _is_available(cursor):
        return "ticks live in an ordinary table (no TimescaleDB here)"
    return "ticks live in an ordinary table, though TimescaleDB is here: `tickpipe migrate --to-timescaledb` moves them"


def _applied(cursor: Cursor) -> dict[str, str]:
    if not _exists(cursor, "tickpipe_migrations"):
        cursor.execute(
            "CREATE TABLE tickpipe_migrations ("
            "name text PRIMARY KEY, checksum text NOT NULL, at timestamptz NOT NULL DEFAULT now())"
        )
    cursor.execute("SELECT name, checksum FROM tickpipe_migrations")
    return dict(cursor.fetchall())


def _refuse_changed(migrations: list[Migration], applied: dict[str, str]) -> None:
    for migration in migrations:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise ConfigurationError(
                f"sql/{migration.name} was applied to this database and has changed since: "
                "put it back, and make the change in a new file"
            )


def _has_ticks(cursor: Cursor) -> bool:
    return _exists(cursor, "prices_real_time")


def _exists(cursor: Cursor, table: str) -> bool:
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (table,))
    return bool(cursor.fetchone() == (True,))


def _is_available(cursor: Cursor) -> bool:
    cursor.execute("SELECT FROM pg_available_extensions WHERE name = 'timescaledb'")
    return cursor.fetchone() is not None


def _has_timescaledb(cursor: Cursor) -> bool:
    cursor.execute("SELECT FROM pg_extension WHERE extname = 'timescaledb'")
    return cursor.fetchone() is not None


def is_hypertable(cursor: Cursor) -> bool:
    """Whether the ticks live in a hypertable."""
    if not _has_timescaledb(cursor):
        return False
    cursor.execute(
        "SELECT FROM timescaledb_information.hypertables WHERE hypertable_name = 'prices_real_time' "
        "AND to_regclass(format('%I.%I', hypertable_schema, hypertable_name)) = to_regclass('prices_real_time')"
    )
    return cursor.fetchone() is not None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
