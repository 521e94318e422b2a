"""The database side: one block in one transaction; what cannot be stored becomes a dead letter in the same one.

Bad data and outage are told apart by exception class: DataError, IntegrityError and what decoding refuses are bad
data; all else is an outage, and then nothing was stored.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2 names its class so
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from psycopg2.extensions import parse_dsn
from psycopg2.extras import execute_values

from common import feed_event, tick, urls
from common.entry import Codec
from common.errors import (
    ConfigurationError,
    DatabaseOutageError,
    DatabasePermissionError,
    DecodeError,
    UntrustedError,
)
from common.number import DECIMAL_BYTES, INTEGER_BYTES, has_only
from common.settings import Secret
from common.stream import Entry

logger = logging.getLogger("consumer.store")

#: What one row was refused for: UnicodeEncodeError is a ValueError, as is psycopg2's word for NUL.
_BAD_DATA = (psycopg2.DataError, psycopg2.IntegrityError, ValueError)

#: What says that our tables are not there, or are another version's.
_OTHER_SCHEMA = (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedFunction, psycopg2.errors.UndefinedColumn)
#: psycopg2's `connection.closed` of a connection that the server has closed.
_LOST = 2

#: Classes of SQLSTATE that say nothing of a row: connection, transaction state, rollback (deadlock), wrong SQL,
#: resources (a full disk), locks, an operator's word, the system. Source: PostgreSQL's manual, appendix A.
_NOT_THE_ROWS_FAULT = {"08", "25", "40", "42", "53", "55", "57", "58"}

#: Seconds after which the database ends a transaction whose client has come to a stop in it: a machine that lost its
#: power, a frozen container. Until then its rows keep everybody waiting who claims the block and stores the same.
FROZEN_AFTER = 20
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
    SET LOCAL idle_in_transaction_session_timeout = '{FROZEN_AFTER}s';
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

Isolation = Literal["READ COMMITTED", "REPEATABLE READ"]
Decoded = tuple[Sequence[bytes], Entry]  # values, and where they came from


#: What a consumer needs; said of an error that does not name the right.
_RIGHTS = (
    "a consumer needs USAGE on the schema, INSERT on prices_real_time, feed_events and dead_letters, and a policy that "
    "allows INSERT if they have row security"
)


class Stored(NamedTuple):
    """What became of a block: rows inserted, rows that were there already, dead letters."""

    inserted: int
    duplicates: int
    dead: int


class Table(NamedTuple):
    """How one stream's entries are stored: decoded, judged where the database has refused, inserted."""

    codec: Codec[Any]
    problem: Callable[..., str | None]
    insert: str
    template: str
    allowed: Mapping[int, bytes]  # the bytes that the values of a column may have, by the column's position

    def check_bytes(self, columns: Sequence[Sequence[bytes]]) -> None:
        """Raises ValueError if a number is spelled as only PostgreSQL would read it: `problem` finds the entry."""
        for position, allowed in self.allowed.items():
            if not has_only(allowed, columns[position]):
                raise ValueError(f"column {position} has bytes other than {allowed!r}")


def _allowed(record: type[Any], integers: Sequence[str], numbers: Sequence[str] = ()) -> Mapping[int, bytes]:
    position = record._fields.index
    return {position(name): INTEGER_BYTES for name in integers} | {position(name): DECIMAL_BYTES for name in numbers}


# One row of column arrays: the text that came from Redis goes to the database as it is, which converts and judges it.
# Interval times bigint is exact to the microsecond; to_timestamp of a float is not. Each unnest() in the select list is
# a step of the same row; in FROM, all rows would be set aside first.
PRICES = Table(
    tick.CODEC,
    tick.problem,
    """
    INSERT INTO prices_real_time
        (session, seq, symbol, time, price, day_volume, bid, ask, exchange, received_at)
    SELECT session, seq, symbol, to_timestamp(time), price, day_volume, bid, ask, exchange,
           timestamptz 'epoch' + received * interval '1 microsecond'
    FROM (SELECT unnest(v.session) AS session, unnest(v.seq) AS seq, unnest(v.symbol) AS symbol, unnest(v.time) AS time,
                 unnest(v.price) AS price, unnest(v.day_volume) AS day_volume, unnest(v.bid) AS bid,
                 unnest(v.ask) AS ask, unnest(v.exchange) AS exchange, unnest(v.received) AS received
          FROM (VALUES %s) AS v (session, seq, symbol, time, price, day_volume, bid, ask, exchange, received)) AS t
    ON CONFLICT DO NOTHING
    """,
    "(%s::bigint[], %s::bigint[], %s::text[], %s::float8[], %s::float8[], %s::float8[], %s::float8[], %s::float8[], "
    "%s::text[], %s::bigint[])",
    _allowed(tick.Tick, tick.INTEGERS, tick.NUMBERS),
)
FEED = Table(
    feed_event.CODEC,
    feed_event.problem,
    """
    INSERT INTO feed_events (session, number, at, event, detail)
    SELECT session, number, timestamptz 'epoch' + at * interval '1 microsecond', event, detail
    FROM (SELECT unnest(v.session) AS session, unnest(v.number) AS number, unnest(v.at) AS at, unnest(v.event) AS event,
                 unnest(v.detail) AS detail
          FROM (VALUES %s) AS v (session, number, at, event, detail)) AS t
    ON CONFLICT DO NOTHING
    """,
    "(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::jsonb[])",
    _allowed(feed_event.FeedEvent, feed_event.INTEGERS),
)


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


_NO_DEAD_LETTER = (
    "INSERT INTO dead_letters (stream, entry_id, session, seq, reason, raw) "
    "SELECT '', '', 1, 1, '', ARRAY[]::bytea[] WHERE false"
)
#: Our tables whose row security lets this role insert nothing.
_ROW_SECURITY = """
SELECT c.relname FROM pg_class AS c
WHERE c.oid IN (to_regclass('prices_real_time'), to_regclass('feed_events'), to_regclass('dead_letters'))
  AND row_security_active(c.oid) AND NOT EXISTS (
    SELECT FROM pg_policy AS p
    WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('a', '*')
      AND (0 = ANY (p.polroles)
           OR EXISTS (SELECT FROM unnest(p.polroles) AS r WHERE r <> 0 AND pg_has_role(r, 'USAGE'))))
"""


class PriceStore:
    """The database as the consumer sees it. Connects when first needed, and again after every outage."""

    def __init__(
        self,
        url: Secret,
        *,
        connect: Callable[[Secret], Connection] = connect,
        settings: str = SETTINGS,
        read_only: bool = False,
    ) -> None:
        """`settings`: SQL at the beginning of each transaction. With `read_only` a transaction can change nothing."""
        check_url(url)
        self._url = url
        self._connect = connect
        self._settings = settings
        self._access = " READ ONLY" if read_only else ""
        self._connection: Connection | None = None
        self._connected = False  # ever

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def transaction(self, isolation: Isolation = "READ COMMITTED") -> Iterator[Connection]:
        """One transaction, committed at the end, rolled back on any error.

        Raises DatabaseOutageError also for a commit that is not certain to be on disk everywhere it should be.
        """
        with self._translated() as connection, connection.cursor() as cursor:
            connection.notices.clear()
            self._begin(cursor, isolation)
            try:
                yield connection
            except BaseException:
                with suppress(psycopg2.Error):  # the connection is lost: the error that came first says why
                    cursor.execute("ROLLBACK")
                raise
            _commit(connection, cursor)

    def _begin(self, cursor: Cursor, isolation: Isolation) -> None:
        """Begin a transaction with its settings, in one round trip."""
        cursor.execute(f"BEGIN ISOLATION LEVEL {isolation}{self._access};{self._settings}")

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Each statement for itself, without our settings: for what cannot run in a transaction.

        Raises DatabaseOutageError.
        """
        with self._translated() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[Connection]:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._open()
            yield self._connection
        except _BAD_DATA:
            raise
        except psycopg2.Error as error:
            reason = _reason(error, self._connection)
            self.close()
            raise _as_ours(error, reason) from error

    def _open(self) -> Connection:
        """A connection. What TLS refuses at the start needs a person; later, a server may mend it without us."""
        try:
            connection = self._connect(self._url)
        except UntrustedError as error:
            if not self._connected:
                raise
            raise DatabaseOutageError(str(error)) from None
        self._connected = True
        return connection

    def check_rights(self) -> None:
        """Run the statements that store a batch, without rows.

        Raises ConfigurationError if the role or the schema does not allow them, DatabaseOutageError.
        """
        with self.transaction() as connection, connection.cursor() as cursor:
            try:
                _refuse_read_only(cursor)
                for table in (PRICES, FEED):
                    _insert_columns(cursor, table, [[]] * table.template.count("%s"))
                cursor.execute(_NO_DEAD_LETTER)
            except psycopg2.errors.InsufficientPrivilege as error:
                raise DatabasePermissionError(
                    f"the role in DATABASE_URL cannot store: {_line(error)} ({_RIGHTS})"
                ) from error
            cursor.execute(_ROW_SECURITY)
            if tables := ", ".join(name for (name,) in cursor.fetchall()):
                raise DatabasePermissionError(
                    f"row security lets the role in DATABASE_URL insert no row into {tables}: add a policy"
                )

    def insert_block(self, table: Table, stream: str, entries: Sequence[Entry], *, bisect: bool = False) -> Stored:
        """Store a block of entries in one transaction, each row or its dead letter; what is there already is left.

        `bisect`: do not trust the first statement; find the rows that fail one by one, whatever they raise. Raises
        DatabaseOutageError, and then nothing of the block is stored.
        """
        try:
            return self._insert_block(table, stream, entries, bisect=bisect)
        except DatabasePermissionError as error:  # a person may give the right back; until then the entries wait
            raise DatabaseOutageError(f"{error} ({_RIGHTS})") from error

    def _insert_block(self, table: Table, stream: str, entries: Sequence[Entry], *, bisect: bool) -> Stored:
        if not bisect:
            try:
                return self._insert_as_it_is(table, entries)
            except (*_BAD_DATA, DecodeError) as error:
                logger.debug("looking at %d entries one by one: %s", len(entries), _line(error))
        good, dead = _judged(table, entries)
        if not bisect:
            try:
                return self._insert(stream, good, dead, table, _insert_rows)
            except _BAD_DATA as error:
                logger.debug("bisecting %d rows: %s", len(good), _line(error))
        return self._insert(stream, good, dead, table, _insert_bisected)

    def _insert_as_it_is(self, table: Table, entries: Sequence[Entry]) -> Stored:
        """The way of nearly every block: no entry is looked at, the database judges all. Raises DecodeError, too."""
        # What was deleted from the stream while pending: nothing is left to store, `verify` will miss it.
        rows = [entry.parts for entry in entries if entry.parts is not None]
        columns = table.codec.columns(rows)
        table.check_bytes(columns)
        with self.transaction() as connection, connection.cursor() as cursor:
            inserted = _insert_columns(cursor, table, columns)
            if inserted < len(rows):
                _wait_for_earlier_commits(cursor)
        return Stored(inserted, len(rows) - inserted, 0)

    def _insert(
        self,
        stream: str,
        good: list[Decoded],
        dead: list[tuple[Entry, str]],
        table: Table,
        insert: Callable[[Cursor, Table, list[Decoded], list[tuple[Entry, str]]], int],
    ) -> Stored:
        refused: list[tuple[Entry, str]] = []
        with self.transaction() as connection, connection.cursor() as cursor:
            inserted = insert(cursor, table, good, refused)
            _insert_dead_letters(cursor, stream, dead + refused)
            _wait_for_earlier_commits(cursor)
        for entry, reason in dead + refused:
            logger.error("dead letter: entry %s of %s: %s", entry.id.decode(), stream, reason)
        lost = len(dead) + len(refused)
        return Stored(inserted, len(good) - len(refused) - inserted, lost)

    def works(self) -> bool:
        """Whether the database answers."""
        try:
            with self.transaction() as connection, connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except DatabaseOutageError:
            return False
        return True


def _judged(table: Table, entries: Sequence[Entry]) -> tuple[list[Decoded], list[tuple[Entry, str]]]:
    """The rows of these entries that are valid, and the other entries with the reason."""
    good: list[Decoded] = []
    dead: list[tuple[Entry, str]] = []
    for entry in entries:
        if entry.parts is None or entry.fields is None:
            continue
        try:
            values, record = table.codec.values(entry.parts), table.codec.decode(entry.fields)
        except DecodeError as error:
            dead.append((entry, str(error)))
            continue
        reason = table.problem(record)
        if reason is None:
            good.append((values, entry))
        else:
            dead.append((entry, reason))
    return good, dead


def _refuse_read_only(cursor: Cursor) -> None:
    """Raises ConfigurationError for a setting; a standby is an outage, since it may become the primary."""
    cursor.execute("SELECT current_setting('transaction_read_only') = 'on' AND NOT pg_is_in_recovery()")
    if cursor.fetchone() == (True,):
        raise ConfigurationError(
            "transactions of this role are read-only in this database: set default_transaction_read_only = off (ALTER "
            "ROLE, ALTER DATABASE or postgresql.conf), or use another role in DATABASE_URL"
        )


def _commit(connection: Connection, cursor: Cursor) -> None:
    """COMMIT. A warning with it says that the commit is not certain to be where synchronous_commit wants it."""
    connection.notices.clear()
    cursor.execute("COMMIT")
    if connection.notices:
        warning = " ".join(" ".join(connection.notices).split())
        raise DatabaseOutageError(f"the database committed with a warning, so nothing is acknowledged: {warning}")
    if cursor.statusmessage != "COMMIT":
        raise DatabaseOutageError(f"the database answered COMMIT by {cursor.statusmessage}: nothing is stored")


def _wait_for_earlier_commits(cursor: Cursor) -> None:
    """Let the next COMMIT wait, for disk and standby, even if the transaction has changed nothing.

    A row that is there already may be of a commit whose wait for the standby was cancelled.
    """
    cursor.execute("SELECT pg_logical_emit_message(true, 'tickpipe', '')")


def _reason(error: psycopg2.Error, connection: Connection | None) -> str:
    """The error, with what the server said before it closed the connection: psycopg2 keeps that elsewhere."""
    if connection is None or connection.closed != _LOST:
        return _line(error)
    said = [*connection.notices, connection.info.error_message or str(error)]
    return " ".join(" ".join(said).split())


def _as_ours(error: psycopg2.Error, reason: str) -> ConfigurationError | DatabaseOutageError:
    """What the error means for us, by its class."""
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


def _insert_rows(cursor: Cursor, table: Table, rows: list[Decoded], _refused: list[tuple[Entry, str]]) -> int:
    return _insert_columns(cursor, table, list(zip(*[values for values, _ in rows], strict=True)))


def _insert_columns(cursor: Cursor, table: Table, columns: Sequence[Sequence[bytes]]) -> int:
    """One statement; returns the rows that were new."""
    if not columns:
        return 0
    execute_values(cursor, table.insert, [[array_literal(column) for column in columns]], template=table.template)
    return cursor.rowcount


def _insert_bisected(cursor: Cursor, table: Table, rows: list[Decoded], refused: list[tuple[Entry, str]]) -> int:
    """Halve what fails until the bad rows stand alone, in savepoints of the one transaction."""
    if not rows:
        return 0
    cursor.execute("SAVEPOINT part")
    try:
        inserted = _insert_rows(cursor, table, rows, refused)
    except (psycopg2.Error, ValueError) as error:
        if isinstance(error, psycopg2.Error) and (error.pgcode or "08")[:2] in _NOT_THE_ROWS_FAULT:
            raise
        cursor.execute("ROLLBACK TO SAVEPOINT part")
        if len(rows) == 1:
            refused.append((rows[0][1], _line(error)))
            return 0
        half = len(rows) // 2
        return _insert_bisected(cursor, table, rows[:half], refused) + _insert_bisected(
            cursor, table, rows[half:], refused
        )
    cursor.execute("RELEASE SAVEPOINT part")
    return inserted


def _insert_dead_letters(cursor: Cursor, stream: str, dead: Sequence[tuple[Entry, str]]) -> None:
    if not dead:
        return
    rows = []
    for entry, reason in dead:
        fields = entry.fields or {}
        number = fields.get(b"seq", fields.get(b"number"))
        raw = [psycopg2.Binary(part) for part in entry.parts or ()]
        why = reason.replace("\0", "\\0").encode(errors="backslashreplace").decode()
        rows.append((stream, entry.id.decode(), _bigint(fields.get(b"session")), _bigint(number), why, raw))
    execute_values(
        cursor,
        "INSERT INTO dead_letters (stream, entry_id, session, seq, reason, raw) VALUES %s ON CONFLICT DO NOTHING",
        rows,
        template="(%s, %s, %s, %s, %s, %s::bytea[])",
        page_size=len(rows),
    )


def _bigint(value: bytes | None) -> int | None:
    return int(value) if value and value.isdigit() and len(value) <= 18 else None


def received_at(entry: Entry) -> int | None:
    """When the producer got this price, microseconds UTC; None where the entry, which may hold anything, is silent."""
    return _bigint((entry.fields or {}).get(b"received"))


def array_literal(values: Sequence[bytes]) -> str:
    """PostgreSQL's literal for an array of these texts; an empty text is NULL. Raises ValueError for what is not UTF-8.

    Only `\\` and `"` have a meaning inside the quotes; where no value has one, nothing is done value by value.
    Source: PostgreSQL's manual, "Array Input and Output Syntax".
    """
    every = b"".join(values)
    if not values or b'"' in every or b"\\" in every:
        escaped = [value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') for value in values]
        return (b"{" + b",".join([b'"%b"' % value if value else b"NULL" for value in escaped]) + b"}").decode()
    return (b'{"' + b'","'.join(values) + b'"}').replace(b'""', b"NULL").decode()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
