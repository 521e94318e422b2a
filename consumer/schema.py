"""Applies sql/: numbered plain SQL, in order, each file once, under an advisory lock.

`NNNN_name.sql` is for every home, `NNNN_name.timescaledb.sql` for a database with the TimescaleDB extension.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2 names its class so

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
    timescaledb: bool

    @property
    def checksum(self) -> str:
        """Tells a changed file."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(folder: Path = SQL_FOLDER) -> list[Migration]:
    """The migrations in the folder, in order."""
    return [
        Migration(path.name, path.read_text(encoding="utf-8"), path.name.endswith(".timescaledb.sql"))
        for path in sorted(folder.glob("*.sql"))
    ]


def migrate(connection: Connection, migrations: list[Migration]) -> list[str]:
    """Apply what is not applied yet, in the connection's transaction; returns the names. Two at once are fine.

    Raises ConfigurationError where the role may not, or where an applied file has changed since; psycopg2's errors
    otherwise.
    """
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            applied = _applied(cursor)
            todo = [migration for migration in migrations if migration.name not in applied]
            _refuse_changed(migrations, applied)
            if not todo:
                return []
            timescaledb = _timescaledb(cursor)
            done = [migration for migration in todo if timescaledb or not migration.timescaledb]
            for migration in done:
                cursor.execute(migration.sql)
                cursor.execute(
                    "INSERT INTO tickpipe_migrations (name, checksum) VALUES (%s, %s)",
                    (migration.name, migration.checksum),
                )
    except psycopg2.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"the database role may not apply the schema ({_first_line(error)}): "
            "run `tickpipe migrate` once with a DATABASE_URL whose role may"
        ) from error
    except psycopg2.ProgrammingError as error:  # no outage: trying again would not help
        raise ConfigurationError(
            f"the schema cannot be applied ({_first_line(error)}): rename what is there, or use another database"
        ) from error
    if done:
        home = "a hypertable (TimescaleDB)" if timescaledb else "an ordinary table (no TimescaleDB here)"
        logger.info("schema: applied %s; ticks live in %s", ", ".join(m.name for m in done), home)
    return [migration.name for migration in done]


def apply(store: PriceStore) -> list[str]:
    """Apply sql/ through the store's connection; its outages are DatabaseOutageErrors."""
    refused: Exception | None = None
    try:
        with store.transaction() as connection, connection.cursor() as cursor:
            _switch_on_timescaledb(cursor)
    except (OutageError, psycopg2.Error) as error:  # in a transaction of its own: not preloaded, it ends the connection
        refused = error
    with store.transaction() as connection:
        done = migrate(connection, read_migrations())
    if refused:  # had the database been away, we would not be here
        logger.warning("TimescaleDB is available here and cannot be switched on (%s)", _first_line(refused))
    return done


def _switch_on_timescaledb(cursor: psycopg2.extensions.cursor) -> None:
    """Install the extension where it is available, and not installed yet."""
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    cursor.execute("SELECT FROM pg_available_extensions WHERE name = 'timescaledb' AND installed_version IS NULL")
    if cursor.fetchone() is not None:
        cursor.execute("CREATE EXTENSION timescaledb")


def _applied(cursor: psycopg2.extensions.cursor) -> dict[str, str]:
    cursor.execute("SELECT to_regclass('tickpipe_migrations') IS NOT NULL")
    if not cursor.fetchone()[0]:  # type: ignore[index]  # that query has one row
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


def _timescaledb(cursor: psycopg2.extensions.cursor) -> bool:
    cursor.execute("SELECT FROM pg_extension WHERE extname = 'timescaledb'")
    return cursor.fetchone() is not None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
