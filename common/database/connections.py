"""Opens connections to the database and classifies their errors."""

from __future__ import annotations

import logging
import re
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2 names its class so
from psycopg2.extensions import parse_dsn

from common import urls
from common.errors import (
    ConfigurationError,
    DatabaseOutageError,
    UntrustedError,
)
from common.settings import Secret

logger = logging.getLogger("consumer.store")

#: Seconds after which the database ends a transaction whose client has come to a stop in it: a machine that lost its
#: power, a frozen container. Until then its rows keep everybody waiting who claims the block and stores the same.
IDLE_IN_TRANSACTION_TIMEOUT = 20
#: A database that is gone without a word is noticed within half a minute.
_KEEPALIVE: Any = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}

#: SQL that sets what our transactions rest on, whatever the role or the database has. Each transaction runs it, since
#: behind a pooler the next one may be on another server connection. The acknowledgement rests on the commit; a message
#: at COMMIT is a warning, in any language. TimescaleDB 2.14 to 2.17 compare a batch that is delivered again with
#: compressed rows only up to a bound; a server that does not know that setting does not get it. From array_nulls on:
#: settings that change, without an error, how values are read and written (not standard_conforming_strings: psycopg2
#: reads that once, at connect).
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
    """Raises ConfigurationError for a URL that is none, before libpq quotes a part of it that may be the password."""
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
        raise urls.database_error("DATABASE_URL", "it has as many ports as hosts, or one port")


def connect(url: Secret, *, application: str = "tickpipe") -> Connection:
    """A connection in autocommit mode: PriceStore begins and ends the transactions.

    Raises ConfigurationError for a URL that is none, a login that is refused or an encoding that lacks characters,
    UntrustedError where TLS cannot come about, DatabaseOutageError otherwise.
    """
    check_url(url)
    try:
        connection: Connection = psycopg2.connect(
            url.reveal(), application_name=application, connect_timeout=5, client_encoding="UTF8", **_KEEPALIVE
        )
    except psycopg2.Error as error:
        raise _at_connect(error) from None
    connection.autocommit = True
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in {"UTF8", "SQL_ASCII", None}:  # SQL_ASCII keeps bytes as they are; a pooler may not tell
        raise ConfigurationError(
            f"the encoding of the database is {encoding}, which cannot hold every text: make one by "
            "`createdb --encoding UTF8 --template template0 NAME`"
        )
    return connection


def is_pooled(connection: Connection) -> bool:
    """Whether a pooler is in between: another process answers than the one that the connection's start named."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return bool(cursor.fetchone() != (connection.info.backend_pid,))


def _at_connect(error: psycopg2.Error) -> ConfigurationError | DatabaseOutageError:
    """libpq gives no SQLSTATE for a refused connection, only its words: the one place where words are read.

    A server that speaks another language is tried again as if it were away, with its words in each line of the log.
    """
    words = " ".join(str(error).split())
    of_tls = (
        "certificate verify failed", "server certificate for", "root certificate file", "certificate required",
        "valid client certificate", "SSL was required", "sslmode",
    )  # fmt: skip
    if any(each in words for each in of_tls):
        return UntrustedError(
            f"the database: {words}; DATABASE_URL ends in ?sslmode=verify-full&sslrootcert=FILE, with the file of the "
            "CA that signed the certificate, and names the host that it was made for"
        )
    refusals = (
        "authentication failed", "does not exist", "no password supplied", "no pg_hba.conf entry",
        "pg_hba.conf rejects", "not permitted to log in", "permission denied for database",
        "no such database", "no such user", "unsupported startup parameter",  # pgbouncer's
    )  # fmt: skip
    if "starting up" not in words and any(refusal in words for refusal in refusals):
        return ConfigurationError(f"the database refuses DATABASE_URL: {words}")
    return DatabaseOutageError(f"the database: {words} (DATABASE_URL)")
