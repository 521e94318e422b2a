"""Translates the errors of psycopg2 into those of common.errors.

The class of an error decides: DataError, IntegrityError and ValueError are bad data, a missing right or table is
configuration, all others are an outage.
"""

from __future__ import annotations

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2 names its class so

from common.errors import ConfigurationError, DatabaseOutageError, DatabasePermissionError, UntrustedError

#: Errors that a value causes. ValueError: psycopg2 rejects NUL, and UnicodeEncodeError is a ValueError.
BAD_DATA = (psycopg2.DataError, psycopg2.IntegrityError, ValueError)

#: Our tables are missing, or of another version.
_OTHER_SCHEMA = (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedFunction, psycopg2.errors.UndefinedColumn)
#: psycopg2's `connection.closed` if the server has closed the connection.
_CLOSED_BY_SERVER = 2

_TLS_MESSAGES = (
    "certificate verify failed", "server certificate for", "root certificate file", "certificate required",
    "valid client certificate", "SSL was required", "sslmode",
)  # fmt: skip
_REFUSALS = (
    "authentication failed", "does not exist", "no password supplied", "no pg_hba.conf entry",
    "pg_hba.conf rejects", "not permitted to log in", "permission denied for database",
    "no such database", "no such user", "unsupported startup parameter",  # PgBouncer's
)  # fmt: skip


def translate_connect_error(error: psycopg2.Error) -> ConfigurationError | DatabaseOutageError:
    """The error for a failed connection attempt.

    libpq gives no SQLSTATE here, so this function alone reads messages. A server that answers in another language
    counts as an outage, and each log line has its message.
    """
    message = one_line(error)
    if any(part in message for part in _TLS_MESSAGES):
        return UntrustedError(
            f"the database: {message}; DATABASE_URL ends in ?sslmode=verify-full&sslrootcert=FILE, with the file of "
            "the CA that signed the certificate, and names the host that it was made for"
        )
    if "starting up" not in message and any(part in message for part in _REFUSALS):
        return ConfigurationError(f"the database refuses DATABASE_URL: {message}")
    return DatabaseOutageError(f"the database: {message} (DATABASE_URL)")


def translate(error: psycopg2.Error, connection: Connection | None) -> ConfigurationError | DatabaseOutageError:
    """The error for a failed statement on this connection."""
    reason = _reason(error, connection)
    if isinstance(error, _OTHER_SCHEMA):
        missing = reason.partition(" LINE ")[0]
        return ConfigurationError(
            f"the schema is missing ({missing}): run `tickpipe migrate`. If the tables are there, the role needs USAGE "
            "on their schema, and its search_path must name it"
        )
    if isinstance(error, psycopg2.errors.InsufficientPrivilege):
        return DatabasePermissionError(f"the role in DATABASE_URL lacks a right: {reason}")
    if "not allowed in statement pooling mode" in reason:
        return ConfigurationError(f"the pooler runs in statement mode: set pool_mode = transaction in it ({reason})")
    return DatabaseOutageError(f"the database: {reason}")


def one_line(error: BaseException) -> str:
    """The error's message as one line; its class if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def _reason(error: psycopg2.Error, connection: Connection | None) -> str:
    """The error, with the server's last notices: psycopg2 keeps the reason of a closed connection there."""
    if connection is None or connection.closed != _CLOSED_BY_SERVER:
        return one_line(error)
    messages = [*connection.notices, connection.info.error_message or str(error)]
    return " ".join(" ".join(messages).split())
