"""Opens connections to the database, with the settings that tickpipe relies on."""

from __future__ import annotations

import re
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2 names its class so
from psycopg2.extensions import make_dsn, parse_dsn

from common import urls
from common.database.errors import translate_connect_error
from common.errors import ConfigurationError
from common.settings import Secret

#: Seconds after which the database ends the transaction of a client that sends nothing: its machine has lost power, or
#: its container is frozen. Until then, other consumers that store the same rows have to wait.
IDLE_IN_TRANSACTION_TIMEOUT = 20
#: These settings detect a lost connection within 30 seconds.
_KEEPALIVE: Any = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}

#: SQL with the settings that each transaction relies on, whatever the role or the database sets. Each transaction runs
#: it, since behind a pooler the next transaction may use another server connection.
#: - synchronous_commit: an acknowledgement relies on the commit.
#: - client_min_messages: a message at COMMIT is a warning, in any language.
#: - array_nulls to transform_null_equals: they change silently how values are read and written.
#:   (standard_conforming_strings is not here, since psycopg2 reads it once, at connect.)
#: - timescaledb.max_tuples_decompressed…: TimescaleDB 2.14 to 2.17 compare a redelivered batch with compressed rows
#:   only up to this limit. A server without the setting does not get it.
SETTINGS = f"""
    SET LOCAL synchronous_commit = on;
    SET LOCAL idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION_TIMEOUT}s';
    SET LOCAL client_min_messages = warning;
    SET LOCAL array_nulls = on;
    SET LOCAL DateStyle = 'ISO, MDY';
    SET LOCAL extra_float_digits = 1;
    SET LOCAL IntervalStyle = postgres;
    SET LOCAL TimeZone = 'UTC';
    SET LOCAL transform_null_equals = off;
    SELECT set_config('timescaledb.max_tuples_decompressed_per_dml_transaction', '0', true)
    WHERE current_setting('timescaledb.max_tuples_decompressed_per_dml_transaction', true) IS NOT NULL;
"""


def check_url(url: Secret) -> None:
    """Raise ConfigurationError for an invalid URL. libpq's own message could quote the password."""
    urls.refuse_database(url.reveal())
    try:
        parsed = parse_dsn(url.reveal())
    except (psycopg2.ProgrammingError, UnicodeError):  # its text has a part of the URL
        raise urls.database_error("DATABASE_URL", "libpq cannot read it, or does not know a parameter") from None
    ports = parsed.get("port", "").split(",")
    hosts = (parsed.get("hostaddr") or parsed.get("host", "")).split(",")
    if not all(port == "" or (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65_536) for port in ports):
        raise urls.database_error("DATABASE_URL", "a port is not between 1 and 65535")
    if len(ports) not in {1, len(hosts)}:
        raise urls.database_error("DATABASE_URL", "it needs one port, or as many ports as hosts")


def each_host(url: Secret) -> dict[str, Secret]:
    """The URL of each host by itself, whatever its role, if DATABASE_URL names several; else nothing."""
    parsed = parse_dsn(url.reveal())
    hosts, ports = (parsed.get(name, "").split(",") for name in ("host", "port"))
    if len(hosts) < 2:
        return {}
    ports *= len(hosts) if len(ports) == 1 else 1
    found = {}
    for host, port in zip(hosts, ports, strict=True):
        alone = {**parsed, "host": host, "port": port, "target_session_attrs": "any"}
        found[f"{host}:{port or 5432}"] = Secret(make_dsn(**alone))
    return found


def database_name(url: Secret) -> str:
    """Host, port and name of the database, for the reader."""
    parsed = parse_dsn(url.reveal())
    host = parsed.get("host") or parsed.get("hostaddr") or "localhost"
    return f"{host}:{parsed.get('port') or 5432}/{parsed.get('dbname') or parsed.get('user') or ''}"


def has_password(url: Secret) -> bool:
    """Whether the URL itself has a password. Raises ConfigurationError for an invalid URL."""
    check_url(url)
    return bool(parse_dsn(url.reveal()).get("password"))


def connect(url: Secret, *, application: str = "tickpipe") -> Connection:
    """Open a connection in autocommit mode: DatabaseClient begins and ends the transactions.

    Raises ConfigurationError for an invalid URL, a refused login or an encoding other than UTF-8, UntrustedError for a
    TLS error, and DatabaseOutageError for all others.
    """
    check_url(url)
    try:
        connection: Connection = psycopg2.connect(
            url.reveal(), application_name=application, connect_timeout=5, client_encoding="UTF8", **_KEEPALIVE
        )
    except psycopg2.Error as error:
        raise translate_connect_error(error) from None
    connection.autocommit = True
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in {"UTF8", "SQL_ASCII", None}:  # SQL_ASCII keeps bytes as they are; a pooler may not report it
        raise ConfigurationError(
            f"the encoding of the database is {encoding}, which cannot store every text: create a database with "
            "`createdb --encoding UTF8 --template template0 NAME`"
        )
    return connection


def is_pooled(connection: Connection) -> bool:
    """Whether a pooler is in between: then the process that answers is not the one that was named at connect."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return bool(cursor.fetchone() != (connection.info.backend_pid,))
