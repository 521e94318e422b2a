"""Applies the migrations in sql/: numbered files of plain SQL, in order, each once, all in one transaction.

`NNNN_name.sql` is for every database, `NNNN_name.timescaledb.sql` only for a hypertable. An advisory lock lets one
process at a time apply them.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2 names its class so
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from common.database.client import DatabaseClient
from common.errors import ConfigurationError, OutageError

logger = logging.getLogger("common.database.migrations")

_HERE = Path(__file__).resolve().parent
#: The migrations: in this package if it is installed from a wheel, at the top of the repository in a checkout.
SQL_FOLDER = _HERE / "sql" if (_HERE / "sql").is_dir() else _HERE.parents[1] / "sql"
#: Key of the advisory lock: "tick" in ASCII.
_LOCK = 0x7469636B
#: A text literal, or comments and blank space.
_TOKENS = re.compile(r"('(?:[^']|'')*')|(?:--[^\n]*|/\*.*?\*/|\s)+", re.DOTALL)


class Migration(NamedTuple):
    """One file of sql/."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the SQL without comments and line breaks, so that a comment may be reworded."""
        code = _TOKENS.sub(lambda found: found[1] or " ", self.sql).strip()
        return hashlib.sha256(code.encode()).hexdigest()

    @property
    def timescaledb(self) -> bool:
        """Whether it is for hypertables only."""
        return self.name.endswith(".timescaledb.sql")


def read_migrations(folder: Path = SQL_FOLDER) -> list[Migration]:
    """The migrations in the folder, in order."""
    return [Migration(path.name, path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.sql"))]


def apply(
    database: DatabaseClient,
    *,
    to_timescaledb: bool = False,
    chunk_interval: str = "",
) -> list[str]:
    """Apply the migrations that are missing, and return their names. Several processes may do it at once.

    A new database with TimescaleDB gets a hypertable. `to_timescaledb` converts a regular table, which locks it for a
    while. `chunk_interval`: a PostgreSQL interval, or "" to leave it as it is.

    Raises ConfigurationError if the role lacks a right, or if an applied file has changed; DatabaseOutageError.
    """
    with database.transaction() as connection, connection.cursor() as cursor:
        wanted = to_timescaledb or not _has_ticks(cursor)
    error = _install_timescaledb(database) if wanted else None
    with database.transaction() as connection:
        done = migrate(connection, read_migrations(), to_timescaledb=to_timescaledb, chunk_interval=chunk_interval)
    with database.transaction() as connection, connection.cursor() as cursor:
        logger.info("schema: %s; %s", f"applied {', '.join(done)}" if done else "up to date", _backend(cursor))
        hypertable = is_hypertable(cursor)
        if hypertable and chunk_interval:
            cursor.execute("SELECT set_chunk_time_interval('prices_real_time', %s::interval)", (chunk_interval,))
    if wanted and not hypertable and error:
        logger.warning("TimescaleDB is available but cannot be installed: %s", _first_line(error))
    if to_timescaledb and not hypertable:
        raise ConfigurationError("TimescaleDB is not available in this database: install it on the server first")
    return done


def migrate(
    connection: Connection, migrations: list[Migration], *, to_timescaledb: bool = False, chunk_interval: str = ""
) -> list[str]:
    """Apply those of these migrations that are missing, in the connection's transaction."""
    with _translated(), connection.cursor() as cursor:
        _take_lock(cursor)
        applied = _applied(cursor)
        _refuse_changed(migrations, applied)
        _refuse_other_table(cursor, applied)
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


def _take_lock(cursor: Cursor) -> None:
    """Take the lock until the transaction ends. A session's lock would stay on a pooler's connection."""
    cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,))
    if cursor.fetchone() != (True,):
        logger.info("schema: another process is applying it; waiting")
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))


@contextmanager
def _translated() -> Iterator[None]:
    """Translate errors that a retry cannot fix into ConfigurationError."""
    try:
        yield
    except psycopg2.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"the database role lacks the right to apply the schema ({_first_line(error)}): "
            "run `tickpipe migrate` once with another role in DATABASE_URL"
        ) from error
    except psycopg2.errors.InvalidSchemaName as error:
        raise ConfigurationError(
            f"the schema cannot be applied ({_first_line(error)}): the role cannot use any schema of its search_path. "
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
            f"the schema cannot be applied ({_first_line(error)}): rename the existing object, or use another database"
        ) from error


def _install_timescaledb(database: DatabaseClient) -> Exception | None:
    """Install the extension if it is available. Returns the error if that fails."""
    try:  # in its own transaction: if the library is not preloaded, the server closes the connection
        with database.transaction() as connection, connection.cursor() as cursor:
            _take_lock(cursor)
            cursor.execute(
                "SELECT FROM pg_available_extensions WHERE name = 'timescaledb' AND installed_version IS NULL"
            )
            if cursor.fetchone() is not None:
                cursor.execute("CREATE EXTENSION timescaledb")
    except (OutageError, psycopg2.Error) as error:
        return error
    return None


def _backend(cursor: Cursor) -> str:
    if is_hypertable(cursor):
        return "ticks are in a hypertable (TimescaleDB)"
    if not _is_available(cursor):
        return "ticks are in a regular table (no TimescaleDB)"
    return "ticks are in a regular table; TimescaleDB is available: `tickpipe migrate --to-timescaledb` moves them"


def _applied(cursor: Cursor) -> dict[str, str]:
    if not _exists(cursor, "tickpipe_migrations"):
        cursor.execute(
            "CREATE TABLE tickpipe_migrations ("
            "name text PRIMARY KEY, checksum text NOT NULL, at timestamptz NOT NULL DEFAULT now())"
        )
    cursor.execute("SELECT name, checksum FROM tickpipe_migrations")
    return dict(cursor.fetchall())


def _refuse_changed(migrations: list[Migration], applied: dict[str, str]) -> None:
    former = _former_checksums()
    for migration in migrations:
        accepted = {migration.checksum, former.get(migration.name)}
        if migration.name in applied and applied[migration.name] not in accepted:
            raise ConfigurationError(
                f"sql/{migration.name} was applied to this database and has changed since: "
                "restore the file, and make the change in a new one"
            )


def _refuse_other_table(cursor: Cursor, applied: dict[str, str]) -> None:
    """Raise ConfigurationError if another program has a table of ticks with our name, as in TimescaleDB's tutorial."""
    cursor.execute("SELECT to_regclass(format('%I.prices_real_time', current_schema())) IS NOT NULL")
    if cursor.fetchone() == (True,) and not any(name.startswith("0001_") for name in applied):
        raise ConfigurationError(
            "the database has a table prices_real_time of another program, as the TimescaleDB tutorial creates it. "
            "Nothing was changed. To keep its rows, stop that program, rename the table, and take the rows over:\n"
            '  psql "$DATABASE_URL" -c "ALTER TABLE prices_real_time RENAME TO prices_tutorial"\n'
            "  tickpipe migrate\n"
            "  tickpipe import --table prices_tutorial"
        )


def _former_checksums() -> dict[str, str]:
    """Checksums that databases recorded before comments in these files were reworded, by the file's name."""
    lines = (SQL_FOLDER / "former_checksums.txt").read_text(encoding="utf-8").splitlines()
    return {name: checksum for checksum, name in (line.split() for line in lines if not line.startswith("#"))}


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
    """Whether the ticks are in a hypertable."""
    if not _has_timescaledb(cursor):
        return False
    cursor.execute(
        "SELECT FROM timescaledb_information.hypertables WHERE hypertable_name = 'prices_real_time' "
        "AND to_regclass(format('%I.%I', hypertable_schema, hypertable_name)) = to_regclass('prices_real_time')"
    )
    return cursor.fetchone() is not None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
