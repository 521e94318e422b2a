"""Checks at start that the role in DATABASE_URL may store prices."""

from __future__ import annotations

import psycopg2
from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so

from common.database.errors import one_line
from common.errors import ConfigurationError, DatabasePermissionError
from consumer.tables import FEED, PRICES

#: Added to an error that does not name the missing right.
NEEDED = (
    "a consumer needs USAGE on the schema, INSERT on prices_real_time, feed_events and dead_letters, and a policy that "
    "allows INSERT if they have row security"
)
_NO_DEAD_LETTER = (
    "INSERT INTO dead_letters (stream, entry_id, session, seq, reason, raw) "
    "SELECT '', '', 1, 1, '', ARRAY[]::bytea[] WHERE false"
)
#: Our tables whose row security does not let this role insert.
_ROW_SECURITY = """
SELECT c.relname FROM pg_class AS c
WHERE c.oid IN (to_regclass('prices_real_time'), to_regclass('feed_events'), to_regclass('dead_letters'))
  AND row_security_active(c.oid) AND NOT EXISTS (
    SELECT FROM pg_policy AS p
    WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('a', '*')
      AND (0 = ANY (p.polroles)
           OR EXISTS (SELECT FROM unnest(p.polroles) AS r WHERE r <> 0 AND pg_has_role(r, 'USAGE'))))
"""


def check(cursor: Cursor) -> None:
    """Run the statements that store a batch, without rows. Raises ConfigurationError if one is not allowed."""
    try:
        _refuse_read_only(cursor)
        for table in (PRICES, FEED):
            table.check_rights(cursor)
        cursor.execute(_NO_DEAD_LETTER)
    except psycopg2.errors.InsufficientPrivilege as error:
        raise DatabasePermissionError(f"the role in DATABASE_URL cannot store: {one_line(error)} ({NEEDED})") from error
    cursor.execute(_ROW_SECURITY)
    if tables := ", ".join(name for (name,) in cursor.fetchall()):
        raise DatabasePermissionError(
            f"row security does not let the role in DATABASE_URL insert into {tables}: add a policy that allows INSERT"
        )


def _refuse_read_only(cursor: Cursor) -> None:
    """Raise ConfigurationError for a read-only setting. A standby is only an outage: it may become the primary."""
    cursor.execute("SELECT current_setting('transaction_read_only') = 'on' AND NOT pg_is_in_recovery()")
    if cursor.fetchone() == (True,):
        raise ConfigurationError(
            "transactions of this role are read-only in this database: set default_transaction_read_only = off (ALTER "
            "ROLE, ALTER DATABASE or postgresql.conf), or use another role in DATABASE_URL"
        )
