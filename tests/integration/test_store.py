"""Blocks in a real PostgreSQL: what is stored, what becomes a dead letter, and when nothing is stored at all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common import feed_event
from common.database.client import DatabaseClient
from common.database.connections import connect
from common.errors import ConfigurationError, DatabaseOutageError, StreamOutageError
from common.settings import Secret
from common.streams.stream import Entry
from common.threads import in_thread
from common.tick import Tick
from consumer.tables import FEED, PRICES
from consumer.writer import Stored, Writer
from tests.support.pipeline import Database
from tests.support.waiting import PATIENCE, wait_for

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SESSION = 1_760_000_000_000_000
GOOD = {
    "session": str(SESSION), "seq": "1", "symbol": "BTC/USD", "time": "1760000000", "price": "96480.5",
    "day_volume": "1234.5", "bid": "96480.25", "ask": "96480.75", "exchange": "Coinbase Pro",
    "received": str(SESSION + 1),
}  # fmt: skip


@pytest.fixture
def store(database: Database) -> Iterator[DatabaseClient]:
    store = DatabaseClient(Secret(database.url))
    yield store
    store.close()


def entry(number: int, **values: str | bytes) -> Entry:
    """A good tick of this number, but for these values."""
    fields: Mapping[str, str | bytes] = {**GOOD, "seq": str(number), "received": str(SESSION + number), **values}
    return raw_entry(number, {name.encode(): _bytes(value) for name, value in fields.items()})


def raw_entry(number: int, fields: Mapping[bytes, bytes] | None) -> Entry:
    parts = None if fields is None else [part for pair in fields.items() for part in pair]
    return Entry(b"1760000000000-%d" % number, parts)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode(errors="surrogatepass")  # as common.streams does


def block(count: int) -> list[Entry]:
    return [entry(number) for number in range(1, count + 1)]


def seqs(database: Database) -> list[int]:
    return [seq for (seq,) in database.query("SELECT seq FROM prices_real_time ORDER BY seq")]


def letters(database: Database) -> dict[bytes, tuple[str, list[bytes]]]:
    """Reason and raw entry of each dead letter, by the entry's id; no id twice."""
    rows = database.query("SELECT entry_id, reason, raw, stream FROM dead_letters")
    assert {stream for *_, stream in rows} <= {"prices"}
    found = {entry_id.encode(): (reason, [bytes(part) for part in raw]) for entry_id, reason, raw, _ in rows}
    assert len(found) == len(rows)
    return found


def flat(entry: Entry) -> list[bytes]:
    return [part for pair in (entry.fields or {}).items() for part in pair]


# Values.

names = st.one_of(
    st.text(min_size=1, max_size=64),
    st.text("\\\"{},' \n\t%sNUL\x01é€😀", min_size=1, max_size=64),
    st.sampled_from(
        ["NULL", "null", '"', "\\", "{}", "{NULL}", '","', " ", "\\N", "%s", "%(a)s", "\\x00", "''", "\r\n"]
    ),
)
numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**30), 10**30).map(str),
    st.sampled_from(["-37.63", "0", "-0.0", "5e-324", "1.7976931348623157e308", "9007199254740993", "1E3", "0.1"]),
)
ticks = st.builds(
    Tick,
    session=st.integers(1, 2**63 - 1).map(str),
    seq=st.integers(1, 2**63 - 1).map(str),
    symbol=names,
    time=st.integers(0, 4_102_444_799).map(str),
    price=numbers,
    day_volume=st.just("") | numbers,
    bid=st.just("") | numbers,
    ask=st.just("") | numbers,
    exchange=st.just("") | names,
    received=st.integers(0, 4_102_444_800_000_000).map(str),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(block=st.lists(ticks, min_size=1, max_size=12, unique_by=lambda tick: (tick.session, tick.seq)))
@example(block=[Tick(*GOOD.values())._replace(symbol='{"\\",NULL}', exchange="NULL", received="1760000000123457")])
def test_every_value_arrives_exactly_or_its_entry_is_a_dead_letter(
    database: Database, store: DatabaseClient, block: list[Tick]
) -> None:
    database.query("TRUNCATE prices_real_time, dead_letters")
    entries = [
        raw_entry(number, {name.encode(): _bytes(value) for name, value in tick._asdict().items()})
        for number, tick in enumerate(block)
    ]
    impossible = {
        entry.id
        for entry, tick in zip(entries, block, strict=True)
        if any("\0" in text or re.search("[\ud800-\udfff]", text) for text in (tick.symbol, tick.exchange))
    }
    good = [tick for entry, tick in zip(entries, block, strict=True) if entry.id not in impossible]

    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(len(good), 0, len(impossible))

    def number(text: str) -> str | None:
        return repr(float(text)) if text else None  # repr: -0.0 is not 0.0

    stored = database.query(
        "SELECT session, seq, symbol, time, price, day_volume, bid, ask, exchange, received_at FROM prices_real_time"
    )
    assert {
        (*row[:4], *[None if value is None else repr(value) for value in row[4:8]], *row[8:]) for row in stored
    } == {
        (
            int(tick.session), int(tick.seq), tick.symbol, EPOCH + timedelta(seconds=int(tick.time)),
            number(tick.price), number(tick.day_volume), number(tick.bid), number(tick.ask),
            tick.exchange or None, EPOCH + timedelta(microseconds=int(tick.received)),
        )
        for tick in good
    }  # fmt: skip
    found = letters(database)
    assert found.keys() == impossible
    assert all(found[entry.id][1] == flat(entry) for entry in entries if entry.id in impossible)


def test_fractions_of_a_second_of_the_exchange_are_kept(database: Database, store: DatabaseClient) -> None:
    Writer(store).insert_batch(PRICES, "prices", [entry(1, time="1760000000.125")])
    assert database.query("SELECT time FROM prices_real_time") == [(datetime(2025, 10, 9, 8, 53, 20, 125_000, UTC),)]


# Bad values.

#: Of every kind that `common.tick.validation_error` or the decoding knows: values, and words of the reason.
RECOGNISED: list[tuple[dict[str, str | bytes], str]] = [
    ({"session": "today"}, "session is not a 64-bit integer: 'today'"),
    ({"session": str(2**63)}, "session is not a 64-bit integer"),
    ({"seq": ""}, "seq is not a 64-bit integer: ''"),
    ({"seq": "1.5"}, "seq is not a 64-bit integer: '1.5'"),
    ({"received": "now"}, "received is not a 64-bit integer: 'now'"),
    ({"symbol": ""}, "symbol is not of 1 to 64 characters: ''"),
    ({"symbol": "€" * 65}, "symbol is not of 1 to 64 characters"),
    ({"exchange": "x" * 65}, "exchange is longer than 64 characters"),
    ({"time": ""}, "time is missing"),
    ({"time": "noon"}, "time is not a finite number: 'noon'"),
    ({"time": "1760000000000"}, "time is not between 1970 and 2100 (seconds since 1970 are meant): '1760000000000'"),
    ({"time": "-1"}, "time is not between 1970 and 2100"),
    ({"time": "NaN"}, "time is not a finite number: 'NaN'"),
    ({"price": ""}, "price is missing"),
    ({"price": "dear"}, "price is not a finite number: 'dear'"),
    ({"price": "NaN"}, "price is not a finite number: 'NaN'"),
    ({"price": "Infinity"}, "price is not a finite number: 'Infinity'"),
    ({"price": "1e400"}, "price is not a finite number: '1e400'"),
    ({"price": "1_000"}, "price is not a finite number: '1_000'"),
    ({"price": "{1}"}, "price is not a finite number: '{1}'"),
    ({"day_volume": "-Infinity"}, "day_volume is not a finite number: '-Infinity'"),
    ({"bid": "1,5"}, "bid is not a finite number: '1,5'"),
    ({"ask": "true"}, "ask is not a finite number: 'true'"),
    ({"symbol": "A\0B"}, "symbol holds a NUL character"),
    ({"symbol": "\ud800"}, "not UTF-8"),
    ({"exchange": b"\xff"}, "not UTF-8"),
    ({"colour": "red"}, "its fields are not those of a tick"),
]

#: What only the database sees.
UNRECOGNISED: list[tuple[dict[str, str | bytes], str]] = [
    ({"price": "1e-400"}, "out of range for type double precision"),
    ({"time": "4102444799.9999995"}, "violates check constraint"),  # which PostgreSQL rounds to 2100
    ({"received": str(2**63 - 1)}, "out of range"),
]
EVERY_KIND = [*RECOGNISED, *UNRECOGNISED]


@pytest.mark.parametrize(("values", "reason"), EVERY_KIND, ids=[str(values) for values, _ in EVERY_KIND])
def test_one_bad_row_in_a_block_is_a_dead_letter_and_the_others_are_stored(
    database: Database, store: DatabaseClient, values: dict[str, str | bytes], reason: str
) -> None:
    bad = entry(50, **values)
    entries = [*block(49), bad, *[entry(number) for number in range(51, 101)]]
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(99, 0, 1)
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(0, 99, 1)  # delivered again
    assert seqs(database) == [number for number in range(1, 101) if number != 50]
    assert letters(database).keys() == {bad.id}
    found, raw = letters(database)[bad.id]
    assert reason in found
    assert raw == flat(bad)


def test_a_block_of_nothing_but_bad_rows_of_every_kind(database: Database, store: DatabaseClient) -> None:
    entries = [entry(number, **RECOGNISED[number % len(RECOGNISED)][0]) for number in range(1000)]
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(0, 0, 1000)
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(0, 0, 1000)
    assert database.count() == 0
    assert {entry_id: raw for entry_id, (_, raw) in letters(database).items()} == {
        entry.id: flat(entry) for entry in entries
    }
    assert all(reason for reason, _ in letters(database).values())


def test_a_dead_letter_says_which_tick_it_was(database: Database, store: DatabaseClient) -> None:
    Writer(store).insert_batch(PRICES, "prices", [entry(7, price="dear"), raw_entry(8, {b"what": b"is this?"})])
    found = database.query("SELECT session, seq, stream, entry_id FROM dead_letters ORDER BY entry_id")
    assert found == [(SESSION, 7, "prices", "1760000000000-7"), (None, None, "prices", "1760000000000-8")]


def test_a_bad_tick_that_was_appended_twice_is_one_dead_letter(database: Database, store: DatabaseClient) -> None:
    first = entry(7, price="dear")
    assert Writer(store).insert_batch(PRICES, "prices", [first, first._replace(id=b"1760000000000-8")]).dead == 2
    assert letters(database).keys() == {first.id}


def test_fields_are_read_by_name(database: Database, store: DatabaseClient) -> None:
    fields = {name.encode(): value.encode() for name, value in reversed(GOOD.items())}
    Writer(store).insert_batch(PRICES, "prices", [raw_entry(1, fields)])
    assert database.query("SELECT seq, symbol, price FROM prices_real_time") == [(1, "BTC/USD", 96480.5)]


class CountingStore(DatabaseClient):
    """Counts the round trips to the server."""

    def __init__(self, url: str) -> None:
        self.round_trips = 0
        counter = self

        class Cursor(psycopg2.extensions.cursor):
            def execute(self, query: str | bytes, vars: object = None) -> None:  # type: ignore[override]  # noqa: A002
                counter.round_trips += 1
                super().execute(query, vars)  # type: ignore[arg-type]

        def connect_counting(url: Secret) -> psycopg2.extensions.connection:
            connection = connect(url)
            connection.cursor_factory = Cursor
            return connection

        super().__init__(Secret(url), connect=connect_counting)


@pytest.mark.parametrize("bad", [0, 1, 1000])
def test_round_trips_of_a_block_of_1000_do_not_grow_with_its_bad_rows(database: Database, bad: int) -> None:
    store = CountingStore(database.url)
    entries = [entry(number, **({"price": "dear"} if number <= bad else {})) for number in range(1, 1001)]
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(1000 - bad, 0, bad)
    store.close()
    assert store.round_trips == 3 if bad == 0 else store.round_trips <= 25


def test_rows_that_only_the_database_can_tell_are_found_by_halving(database: Database) -> None:
    store = CountingStore(database.url)
    bad = {1, 333, 334, 1000}
    entries = [entry(number, **({"price": "1e-400"} if number in bad else {})) for number in range(1, 1001)]
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(996, 0, 4)
    store.close()
    assert seqs(database) == [number for number in range(1, 1001) if number not in bad]
    assert letters(database).keys() == {entries[number - 1].id for number in bad}
    assert store.round_trips < 25 + 4 * 10 * 6  # each of the four: ten halvings, each half about three statements


# Delivered again.


def test_inserted_is_the_true_number_of_new_rows(database: Database, store: DatabaseClient) -> None:
    entries = block(1000)
    assert Writer(store).insert_batch(PRICES, "prices", entries[:300]) == Stored(300, 0, 0)
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(700, 300, 0)
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(0, 1000, 0)
    assert seqs(database) == list(range(1, 1001))


def test_a_tick_twice_in_one_block_is_one_row(database: Database, store: DatabaseClient) -> None:
    resent = entry(1)._replace(id=b"1760000000001-0")  # by a producer that got no answer
    assert Writer(store).insert_batch(PRICES, "prices", [entry(1), resent, entry(2)]) == Stored(2, 1, 0)
    assert seqs(database) == [1, 2]


def test_an_entry_that_was_deleted_from_the_stream_is_passed_over(database: Database, store: DatabaseClient) -> None:
    assert Writer(store).insert_batch(PRICES, "prices", [entry(1), raw_entry(2, None), entry(3)]) == Stored(2, 0, 0)
    assert Writer(store).insert_batch(PRICES, "prices", [raw_entry(2, None)]) == Stored(0, 0, 0)
    assert seqs(database) == [1, 3]
    assert letters(database) == {}


def test_feed_events_are_stored_once_and_bad_ones_are_dead_letters(database: Database, store: DatabaseClient) -> None:
    events = [feed_event.make(SESSION, n, SESSION + n, "refused", {"symbols": {'"{\\': "ü, NULL"}}) for n in (1, 2, 3)]
    events[1] = events[1]._replace(detail="{no JSON")
    entries = [
        raw_entry(number, {name.encode(): value.encode() for name, value in event._asdict().items()})
        for number, event in enumerate(events)
    ]
    assert Writer(store).insert_batch(FEED, "prices:feed", entries) == Stored(2, 0, 1)
    assert Writer(store).insert_batch(FEED, "prices:feed", entries) == Stored(0, 2, 1)
    assert database.query("SELECT session, number, at, event, detail FROM feed_events ORDER BY number") == [
        (SESSION, n, EPOCH + timedelta(microseconds=SESSION + n), "refused", {"symbols": {'"{\\': "ü, NULL"}})
        for n in (1, 3)
    ]
    assert database.query("SELECT stream, session, seq FROM dead_letters") == [("prices:feed", SESSION, 2)]


# Outages: nothing is stored, not even a dead letter, and the block may come again.


@contextmanager
def refused(database: Database, symbol: str, sqlstate: str) -> Iterator[None]:
    """While this lasts the database refuses the rows of a symbol with this SQLSTATE."""
    database.query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{sqlstate}'; END$$"
    )
    try:
        database.query(
            "CREATE TRIGGER refuse BEFORE INSERT ON prices_real_time FOR EACH ROW "
            f"WHEN (NEW.symbol = '{symbol}') EXECUTE FUNCTION refuse()"
        )
        yield
    finally:
        database.query("DROP FUNCTION refuse CASCADE")


@pytest.mark.parametrize("bisect", [False, True])
@pytest.mark.parametrize(
    "sqlstate",
    ["08006", "25006", "40P01", "40001", "42501", "53100", "53200", "55P03", "57014", "57P01", "58030"],
)
def test_an_outage_is_told_by_its_class(database: Database, store: DatabaseClient, sqlstate: str, bisect: bool) -> None:
    undecodable = raw_entry(12, {b"what": b"is this?"})
    entries = [*block(10), entry(11, symbol="BAD"), undecodable]
    with refused(database, "BAD", sqlstate), pytest.raises(DatabaseOutageError, match="refused"):
        Writer(store).insert_batch(PRICES, "prices", entries, bisect=bisect)
    assert database.count() == database.count("dead_letters") == 0
    assert Writer(store).insert_batch(PRICES, "prices", entries, bisect=bisect) == Stored(11, 0, 1)
    assert letters(database).keys() == {undecodable.id}


@pytest.mark.parametrize("sqlstate", ["54000", "P0001", "XX000"])
def test_what_may_be_the_rows_fault_is_an_outage_until_told_to_bisect(
    database: Database, store: DatabaseClient, sqlstate: str
) -> None:
    entries = [*block(10), entry(11, symbol="BAD")]
    with refused(database, "BAD", sqlstate):
        with pytest.raises(DatabaseOutageError, match="refused"):
            Writer(store).insert_batch(PRICES, "prices", entries)
        assert database.count() == database.count("dead_letters") == 0
        assert Writer(store).insert_batch(PRICES, "prices", entries, bisect=True) == Stored(10, 0, 1)
    assert letters(database).keys() == {entries[10].id}


def test_a_read_only_database_is_an_outage(fresh_database: Database) -> None:
    store = DatabaseClient(Secret(fresh_database.url))
    name = fresh_database.query("SELECT current_database()")[0][0]
    fresh_database.query(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(DatabaseOutageError, match="read-only"):
        Writer(store).insert_batch(PRICES, "prices", [*block(10), entry(11, price="dear")])
    assert fresh_database.count() == fresh_database.count("dead_letters") == 0
    fresh_database.query("SET default_transaction_read_only = off")
    fresh_database.query(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert Writer(store).insert_batch(PRICES, "prices", block(10)) == Stored(10, 0, 0)
    store.close()


def test_a_statement_timeout_is_an_outage(fresh_database: Database) -> None:
    store = DatabaseClient(Secret(fresh_database.url))
    name = fresh_database.query("SELECT current_database()")[0][0]
    fresh_database.query(f"ALTER DATABASE {name} SET statement_timeout = '500ms'")
    with fresh_database.locked(), pytest.raises(DatabaseOutageError, match="statement timeout"):
        Writer(store).insert_batch(PRICES, "prices", block(10))
    assert Writer(store).insert_batch(PRICES, "prices", block(10)) == Stored(10, 0, 0)
    store.close()


def test_a_killed_connection_is_an_outage_and_the_next_try_connects_again(
    database: Database, store: DatabaseClient
) -> None:
    assert store.ping()
    database.query(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with pytest.raises(DatabaseOutageError):
        Writer(store).insert_batch(PRICES, "prices", block(10))
    assert Writer(store).insert_batch(PRICES, "prices", block(10)) == Stored(10, 0, 0)


def test_a_connection_killed_in_the_middle_of_a_block_stores_nothing(database: Database, store: DatabaseClient) -> None:
    with database.locked():
        inserting = in_thread(Writer(store).insert_batch, PRICES, "prices", block(10))
        (backend,) = wait_for(database.waiting)
        database.query("SELECT pg_terminate_backend(%s)", backend)
        assert isinstance(inserting.exception(timeout=PATIENCE), DatabaseOutageError)
    assert database.count() == 0
    assert Writer(store).insert_batch(PRICES, "prices", block(10)) == Stored(10, 0, 0)


TERMINATE = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
TERMINATED = "terminating connection due to administrator command"


@pytest.mark.parametrize("idle", [True, False])
def test_an_outage_says_what_the_server_said_first(database: Database, store: DatabaseClient, idle: bool) -> None:
    def lose_the_connection() -> None:
        with store.transaction() as connection, connection.cursor() as cursor:
            database.query(TERMINATE)
            cursor.execute("SELECT 1")

    if idle:
        assert store.ping()
        database.query(TERMINATE)
        with pytest.raises(DatabaseOutageError, match=TERMINATED):
            Writer(store).insert_batch(PRICES, "prices", block(1))
    else:
        with pytest.raises(DatabaseOutageError, match=TERMINATED):
            lose_the_connection()
    assert Writer(store).insert_batch(PRICES, "prices", block(1)) == Stored(1, 0, 0)


def test_an_outage_says_why_a_statement_ended_the_connection(store: DatabaseClient) -> None:
    """As CREATE EXTENSION timescaledb does where the library is not preloaded."""

    def end_it() -> None:
        with store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(DatabaseOutageError, match=TERMINATED):
        end_it()
    assert store.ping()


def test_an_error_of_our_own_is_not_hidden_by_a_connection_that_is_lost(
    database: Database, store: DatabaseClient
) -> None:
    def fail() -> None:
        with store.transaction():
            database.query(TERMINATE)
            raise StreamOutageError("Redis: unavailable")

    with pytest.raises(StreamOutageError, match="Redis: unavailable"):
        fail()
    assert store.ping()


def test_a_setting_that_an_extension_brings_later_holds_in_the_next_transaction(store: DatabaseClient) -> None:
    """The connection that creates TimescaleDB has its settings only from then on."""
    name = "timescaledb.max_tuples_decompressed_per_dml_transaction"
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT set_config(%s, '100000', false)", (name,))
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(%s)", (name,))
        assert cursor.fetchone() == ("0",)


def test_two_stores_that_write_the_same_block_at_once_store_it_once(database: Database, store: DatabaseClient) -> None:
    other = DatabaseClient(Secret(database.url))
    with database.locked():
        writing = [in_thread(Writer(each).insert_batch, PRICES, "prices", block(500)) for each in (store, other)]
        wait_for(lambda: len(database.waiting()) == 2)
    for each in writing:
        each.result(timeout=PATIENCE)
    other.close()
    assert seqs(database) == list(range(1, 501))


@pytest.mark.parametrize("bisect", [False, True])
def test_a_missing_schema_needs_a_person(empty_database: Database, bisect: bool) -> None:
    store = DatabaseClient(Secret(empty_database.url))
    with pytest.raises(ConfigurationError, match="run `tickpipe migrate`"):
        Writer(store).insert_batch(PRICES, "prices", block(10), bisect=bisect)
    store.close()


def test_the_commit_is_on_disk_whatever_the_role_prefers(fresh_database: Database) -> None:
    store = DatabaseClient(Secret(fresh_database.url))
    name = fresh_database.query("SELECT current_database()")[0][0]
    fresh_database.query(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('synchronous_commit'), current_setting('TimeZone')")
        assert cursor.fetchone() == ("on", "UTC")
    store.close()
