"""Applies sql/: numbered plain SQL, in order, each file once, all in one transaction, under an advisory lock.

`NNNN_name.sql` is for every home, `NNNN_name.timescaledb.sql` for one on TimescaleDB.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2 names its class so
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from common.errors import ConfigurationError, OutageError
from consumer.store import PriceStore

logger = logging.getLogger("consumer.schema")

#: Beside the packages, in a checkout and in an installed wheel alike.
SQL_FOLDER = Path(__file__).resolve().parent.parent / "sql"
#: Key of the advisory lock: "tick" in ASCII.
_LOCK = 0x7469636B


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


def read_migrations(folder: Path = SQL_FOLDER) -> list[Migration]:
    """The migrations in the folder, in order."""
    return [Migration(path.name, path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.sql"))]


def apply(
    store: PriceStore,
    *,
    to_timescaledb: bool = False,
    chunk_interval: str = "",
) -> list[str]:
    """Apply sql/ through the store's connection; returns the files' names. Several at once are fine.

    Where TimescaleDB is available, ticks live in a hypertable from the start; an ordinary table becomes one with
    `to_timescaledb` alone: that locks it, and takes a while. `chunk_interval`: a PostgreSQL interval; "" leaves it.
    Raises ConfigurationError where the role may not, or where an applied file has changed since; DatabaseOutageError.
    """
    with store.transaction() as connection, connection.cursor() as cursor:
        wanted = to_timescaledb or not _has_ticks(cursor)
    refused = _switch_on_timescaledb(store) if wanted else None
    with store.transaction() as connection:
        done = migrate(connection, read_migrations(), to_timescaledb=to_timescaledb, chunk_interval=chunk_interval)
    with store.transaction() as connection, connection.cursor() as cursor:
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
    """Apply what is not applied yet, in the connection's transaction."""
    with _refusals(), connection.cursor() as cursor:
        _wait_for_turn(cursor)
        applied = _applied(cursor)
        _refuse_changed(migrations, applied)
        timescaledb = _has_timescaledb(cursor) and (to_timescaledb or not _has_ticks(cursor) or is_hypertable(cursor))
        todo = [each for each in migrations if each.name not in applied and (timescaledb or not each.timescaledb)]
        if chunk_interval:
            cursor.execute("SELECT set_config('tickpipe.chunk_interval', %s::interval::text, true)", (chunk_interval,))
        for migration in todo:
            cursor.execute(migration.sql)
            cursor.execute(
                "INSERT INTO tickpipe_migrations (name, checksum) VALUES (%s, %s)", (migration.name, migration.checksum)
            )
    return [migration.name for migration in todo]


def _wait_for_turn(cursor: Cursor) -> None:
    """Take the lock until the transaction ends: a lock of the session would stay behind on a pooler's connection."""
    cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,))
    if cursor.fetchone() != (True,):
        logger.info("schema: another process applies it; waiting until that ends")
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))


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


def _switch_on_timescaledb(store: PriceStore) -> Exception | None:
    """Install the extension where it is available. Returns why it could not be."""
    try:  # in a transaction of its own: where it is not preloaded, that ends the connection
        with store.transaction() as connection, connection.cursor() as cursor:
            _wait_for_turn(cursor)
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
