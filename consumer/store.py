"""The database side: one block in one transaction; what cannot be stored becomes a dead letter in the same one.

Bad data and outage are told apart by exception class: DataError, IntegrityError and what decoding refuses are bad
data; all else is an outage, and then nothing was stored.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812  psycopg2 names its class so
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from psycopg2.extensions import parse_dsn
from psycopg2.extras import execute_values

from common import feed_event, tick, urls
from common.entry import Codec
from common.errors import ConfigurationError, DatabaseOutageError, DecodeError, UntrustedError
from common.settings import Secret
from common.stream import Entry

logger = logging.getLogger("consumer.store")

#: What one row was refused for: UnicodeEncodeError is a ValueError, as is psycopg2's word for NUL.
_BAD_DATA = (psycopg2.DataError, psycopg2.IntegrityError, ValueError)

#: Classes of SQLSTATE that say nothing of a row: connection, transaction state, rollback (deadlock), wrong SQL,
#: resources (a full disk), locks, an operator's word, the system. Source: PostgreSQL's manual, appendix A.
_NOT_THE_ROWS_FAULT = {"08", "25", "40", "42", "53", "55", "57", "58"}

#: Seconds after which the database ends a transaction whose client has come to a stop in it: a machine that lost its
#: power, a frozen container. Until then its rows keep everybody waiting who claims the block and stores the same.
FROZEN_AFTER = 20
#: A database that is gone without a word is noticed within half a minute.
_KEEPALIVE: Any = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}

Decoded = tuple[Sequence[bytes], tuple[str, ...], Entry]  # values, the record they make, and where it came from


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
)
FEED = Table(
    feed_event.CODEC,
    lambda _: None,
    """
    INSERT INTO feed_events (session, number, at, event, detail)
    SELECT session, number, timestamptz 'epoch' + at * interval '1 microsecond', event, detail
    FROM (SELECT unnest(v.session) AS session, unnest(v.number) AS number, unnest(v.at) AS at, unnest(v.event) AS event,
                 unnest(v.detail) AS detail
          FROM (VALUES %s) AS v (session, number, at, event, detail)) AS t
    ON CONFLICT DO NOTHING
    """,
    "(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::jsonb[])",
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
    """A connection whose commits are on disk when they return, in UTC.

    Raises ConfigurationError for a URL that is none, a login that is refused or an encoding that lacks characters,
    UntrustedError where TLS cannot come about, DatabaseOutageError otherwise.
    """
    check_url(url)
    try:
        connection: Connection = psycopg2.connect(
            url.reveal(), application_name=application, connect_timeout=5, client_encoding="UTF8", **_KEEPALIVE
        )
        with connection, connection.cursor() as cursor:
            # The ack rests on the commit; a role or a database may have it off. A block that is delivered again into
            # columns is compared with what they hold: TimescaleDBs of 2.14 to 2.17 refuse to unpack much for that.
            cursor.execute(
                "SET synchronous_commit = on; SET idle_in_transaction_session_timeout = %s; "
                "SET TimeZone = 'UTC'; SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED;"
                "SELECT set_config(name, '0', false) FROM pg_settings"
                " WHERE name = 'timescaledb.max_tuples_decompressed_per_dml_transaction'",
                [f"{FROZEN_AFTER}s"],
            )
    except psycopg2.Error as error:
        raise _at_connect(error) from None
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in {"UTF8", "SQL_ASCII", None}:  # SQL_ASCII keeps bytes as they are; a pooler may not tell
        raise ConfigurationError(
            f"the encoding of the database is {encoding}, which cannot hold every text: make one by "
            "`createdb --encoding UTF8 --template template0 NAME`"
        )
    return connection


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
    )  # fmt: skip
    if "starting up" not in words and any(refusal in words for refusal in refusals):
        return ConfigurationError(f"the database refuses DATABASE_URL: {words}")
    return DatabaseOutageError(f"the database: {words} (DATABASE_URL)")


class PriceStore:
    """The database as the consumer sees it. Connects when first needed, and again after every outage."""

    def __init__(self, url: Secret, *, connect: Callable[[Secret], Connection] = connect) -> None:
        check_url(url)
        self._url = url
        self._connect = connect
        self._connection: Connection | None = None
        self._connected = False  # ever

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction, committed at the end, rolled back on any error; outages raise DatabaseOutageError."""
        with self._translated() as connection, connection:
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Each statement for itself: what cannot run in a transaction. Outages raise DatabaseOutageError."""
        with self._translated() as connection:
            connection.autocommit = True
            try:
                yield connection
            finally:
                if not connection.closed:
                    connection.autocommit = False

    @contextmanager
    def _translated(self) -> Iterator[Connection]:
        try:
            if self._connection is None:
                self._connection = self._open()
            yield self._connection
        except _BAD_DATA:
            raise
        except (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedFunction) as error:
            words = _line(error).partition(" LINE ")[0]
            raise ConfigurationError(f"the schema is missing ({words}): run `tickpipe migrate`") from error
        except psycopg2.Error as error:
            self.close()
            raise DatabaseOutageError(f"the database: {_line(error)}") from error

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

    def insert_block(self, table: Table, stream: str, entries: Sequence[Entry], *, bisect: bool = False) -> Stored:
        """Store a block of entries in one transaction, each row or its dead letter; what is there already is left.

        `bisect`: do not trust the first statement; find the rows that fail one by one, whatever they raise. Raises
        DatabaseOutageError, and then nothing of the block is stored.
        """
        if not bisect:
            try:
                return self._insert_as_it_is(table, entries)
            except (*_BAD_DATA, DecodeError) as error:
                logger.debug("looking at %d entries one by one: %s", len(entries), _line(error))
        good, dead = _decoded(table, entries)
        if not bisect:
            good, more = _judged(table, good)
            dead += more
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
        with self.transaction() as connection, connection.cursor() as cursor:
            inserted = _insert_columns(cursor, table, columns)
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


def _decoded(table: Table, entries: Sequence[Entry]) -> tuple[list[Decoded], list[tuple[Entry, str]]]:
    good: list[Decoded] = []
    dead: list[tuple[Entry, str]] = []
    for entry in entries:
        if entry.parts is None or entry.fields is None:
            continue
        try:
            good.append((table.codec.values(entry.parts), table.codec.decode(entry.fields), entry))
        except DecodeError as error:
            dead.append((entry, str(error)))
    return good, dead


def _judged(table: Table, rows: list[Decoded]) -> tuple[list[Decoded], list[tuple[Entry, str]]]:
    reasons = [table.problem(record) for _, record, _ in rows]
    return (
        [row for row, reason in zip(rows, reasons, strict=True) if reason is None],
        [(entry, reason) for (_, _, entry), reason in zip(rows, reasons, strict=True) if reason is not None],
    )


def _insert_rows(cursor: Cursor, table: Table, rows: list[Decoded], _refused: list[tuple[Entry, str]]) -> int:
    return _insert_columns(cursor, table, list(zip(*[values for values, _, _ in rows], strict=True)))


def _insert_columns(cursor: Cursor, table: Table, columns: Sequence[Sequence[bytes]]) -> int:
    """One statement; returns the rows that were new."""
    if not columns or not columns[0]:
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
            refused.append((rows[0][2], _line(error)))
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
