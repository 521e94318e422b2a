"""Batches in a real PostgreSQL: stored rows and dead letters."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common import feed_event
from common.database.client import DatabaseClient
from common.database.connections import connect
from common.settings import Secret
from common.tick import SIDES, Tick, encode
from consumer.tables import FEED, PRICES
from consumer.writer import Stored, Writer
from tests.support.batches import EPOCH, GOOD, SESSION, entry, flat, letters, make_batch, raw_entry, seqs, to_bytes
from tests.support.pipeline import Database

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
    size=st.just("") | numbers,
    side=st.sampled_from(SIDES),
    trade_id=st.just("") | st.integers(-(2**63), 2**63 - 1).map(str),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(ticks, min_size=1, max_size=12, unique_by=lambda tick: (tick.session, tick.seq)))
@example(batch=[Tick(*GOOD.values())._replace(symbol='{"\\",NULL}', exchange="NULL", received="1760000000123457")])
def test_every_value_is_stored_exactly_or_is_a_dead_letter(
    database: Database, store: DatabaseClient, batch: list[Tick]
) -> None:
    database.query("TRUNCATE prices_real_time, dead_letters")
    entries = [
        raw_entry(position, {name.encode(): to_bytes(value) for name, value in encode(each).items()})
        for position, each in enumerate(batch)
    ]
    impossible = {
        entry.id
        for entry, tick in zip(entries, batch, strict=True)
        if any("\0" in text or re.search("[\ud800-\udfff]", text) for text in (tick.symbol, tick.exchange))
    }
    good = [tick for entry, tick in zip(entries, batch, strict=True) if entry.id not in impossible]

    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(len(good), 0, len(impossible))

    def number(text: str) -> str | None:
        return repr(float(text)) if text else None  # repr: -0.0 is not 0.0

    stored = database.query(
        "SELECT session, seq, symbol, time, price, day_volume, bid, ask, size, exchange, received_at, side, "
        "trade_id FROM prices_real_time"
    )
    assert {
        (*row[:4], *[None if value is None else repr(value) for value in row[4:9]], *row[9:]) for row in stored
    } == {
        (
            int(tick.session), int(tick.seq), tick.symbol, EPOCH + timedelta(seconds=int(tick.time)),
            number(tick.price), number(tick.day_volume), number(tick.bid), number(tick.ask), number(tick.size),
            tick.exchange or None, EPOCH + timedelta(microseconds=int(tick.received)), tick.side or None,
            int(tick.trade_id) if tick.trade_id else None,
        )
        for tick in good
    }  # fmt: skip
    found = letters(database)
    assert found.keys() == impossible
    assert all(found[entry.id][1] == flat(entry) for entry in entries if entry.id in impossible)


def test_fractional_exchange_seconds_are_kept(database: Database, store: DatabaseClient) -> None:
    Writer(store).insert_batch(PRICES, "prices", [entry(1, time="1760000000.125")])
    assert database.query("SELECT time FROM prices_real_time") == [(datetime(2025, 10, 9, 8, 53, 20, 125_000, UTC),)]


#: Invalid values that validation or decoding finds, and part of the reason.
RECOGNISED: list[tuple[dict[str, str | bytes], str]] = [
    ({"session": "today"}, "session is not a whole number of 64 bits: 'today'"),
    ({"session": str(2**63)}, "session is not a whole number of 64 bits"),
    ({"seq": ""}, "seq is not a whole number of 64 bits: ''"),
    ({"seq": "1.5"}, "seq is not a whole number of 64 bits: '1.5'"),
    ({"received": "now"}, "received is not a whole number of 64 bits: 'now'"),
    ({"symbol": ""}, "symbol does not have 1 to 64 characters: ''"),
    ({"symbol": "€" * 65}, "symbol does not have 1 to 64 characters"),
    ({"exchange": "x" * 65}, "exchange is longer than 64 characters"),
    ({"time": ""}, "time is missing"),
    ({"time": "noon"}, "time is not a finite number: 'noon'"),
    ({"time": "1760000000000"}, "time is not between 1970 and 2100 (expected: seconds since 1970): '1760000000000'"),
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
    ({"size": "1,5", "side": "buy", "trade_id": "1"}, "size is not a finite number: '1,5'"),
    ({"size": "1", "side": "up", "trade_id": "1"}, "side is neither buy nor sell: 'up'"),
    ({"size": "1", "side": "buy", "trade_id": "1.5"}, "trade_id is not a whole number of 64 bits: '1.5'"),
    ({"size": "1"}, "its fields are not those of a tick"),
    ({"colour": "red"}, "its fields are not those of a tick"),
]


#: Invalid values that only the database finds.
UNRECOGNISED: list[tuple[dict[str, str | bytes], str]] = [
    ({"price": "1e-400"}, "out of range for type double precision"),
    ({"time": "4102444799.9999995"}, "violates check constraint"),  # PostgreSQL rounds it to 2100
    ({"received": str(2**63 - 1)}, "out of range"),
]


EVERY_KIND = [*RECOGNISED, *UNRECOGNISED]


@pytest.mark.parametrize(("values", "reason"), EVERY_KIND, ids=[str(values) for values, _ in EVERY_KIND])
def test_one_bad_row_is_a_dead_letter_and_the_rest_of_the_batch_is_stored(
    database: Database, store: DatabaseClient, values: dict[str, str | bytes], reason: str
) -> None:
    bad = entry(50, **values)
    entries = [*make_batch(49), bad, *[entry(number) for number in range(51, 101)]]
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(99, 0, 1)
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(0, 99, 1)  # redelivered
    assert seqs(database) == [number for number in range(1, 101) if number != 50]
    assert letters(database).keys() == {bad.id}
    found, raw = letters(database)[bad.id]
    assert reason in found
    assert raw == flat(bad)


def test_batch_of_only_bad_rows_becomes_dead_letters(database: Database, store: DatabaseClient) -> None:
    entries = [entry(number, **RECOGNISED[number % len(RECOGNISED)][0]) for number in range(1000)]
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(0, 0, 1000)
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(0, 0, 1000)
    assert database.count() == 0
    assert {entry_id: raw for entry_id, (_, raw) in letters(database).items()} == {
        entry.id: flat(entry) for entry in entries
    }
    assert all(reason for reason, _ in letters(database).values())


def test_dead_letter_identifies_its_tick(database: Database, store: DatabaseClient) -> None:
    Writer(store).insert_batch(PRICES, "prices", [entry(7, price="dear"), raw_entry(8, {b"what": b"is this?"})])
    found = database.query("SELECT session, seq, stream, entry_id FROM dead_letters ORDER BY entry_id")
    assert found == [(SESSION, 7, "prices", "1760000000000-7"), (None, None, "prices", "1760000000000-8")]


def test_bad_tick_appended_twice_is_one_dead_letter(database: Database, store: DatabaseClient) -> None:
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
def test_round_trips_do_not_grow_with_bad_rows(database: Database, bad: int) -> None:
    store = CountingStore(database.url)
    entries = [entry(number, **({"price": "dear"} if number <= bad else {})) for number in range(1, 1001)]
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(1000 - bad, 0, bad)
    store.close()
    assert store.round_trips == 3 if bad == 0 else store.round_trips <= 25


def test_rows_only_the_database_refuses_are_found_by_bisection(database: Database) -> None:
    store = CountingStore(database.url)
    bad = {1, 333, 334, 1000}
    entries = [entry(number, **({"price": "1e-400"} if number in bad else {})) for number in range(1, 1001)]
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(996, 0, 4)
    store.close()
    assert seqs(database) == [number for number in range(1, 1001) if number not in bad]
    assert letters(database).keys() == {entries[number - 1].id for number in bad}
    assert (
        store.round_trips < 25 + 4 * 10 * 6
    )  # for each of the four: ten bisections with about three statements a half


def test_inserted_counts_only_new_rows(database: Database, store: DatabaseClient) -> None:
    entries = make_batch(1000)
    assert Writer(store).insert_batch(PRICES, "prices", entries[:300]) == Stored(300, 0, 0)
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(700, 300, 0)
    assert Writer(store).insert_batch(PRICES, "prices", entries) == Stored(0, 1000, 0)
    assert seqs(database) == list(range(1, 1001))


def test_duplicate_tick_in_a_batch_is_one_row(database: Database, store: DatabaseClient) -> None:
    resent = entry(1)._replace(id=b"1760000000001-0")  # a producer repeats an unanswered append
    assert Writer(store).insert_batch(PRICES, "prices", [entry(1), resent, entry(2)]) == Stored(2, 1, 0)
    assert seqs(database) == [1, 2]


def test_entry_deleted_from_the_stream_is_skipped(database: Database, store: DatabaseClient) -> None:
    assert Writer(store).insert_batch(PRICES, "prices", [entry(1), raw_entry(2, None), entry(3)]) == Stored(2, 0, 0)
    assert Writer(store).insert_batch(PRICES, "prices", [raw_entry(2, None)]) == Stored(0, 0, 0)
    assert seqs(database) == [1, 3]
    assert letters(database) == {}


def test_feed_events_are_stored_once_and_malformed_ones_are_dead_letters(
    database: Database, store: DatabaseClient
) -> None:
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
