"""Whether a row is stored depends only on the row, on no other row and on no code path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common import feed_event, tick
from common.database.client import DatabaseClient
from common.settings import Secret
from common.streams.stream import Entry
from consumer.tables import FEED, PRICES, TableWriter
from consumer.writer import Writer
from tests.support.pipeline import Database

GOOD = tick.Tick(
    session="1760000000000000", seq="1", symbol="BTC/USD", time="1760000000", price="1.5", day_volume="2.5", bid="1",
    ask="2", exchange="Coinbase Pro", received="1760000000000001", size="0.5", side="buy", trade_id="7",
)  # fmt: skip
EVENT = feed_event.make(1_760_000_000_000_000, 1, 1_760_000_000_000_001, "connected", {"a": 1})

#: The session of another row in the batch. It has more digits than any text that is made below.
OTHER_SESSION = "1234567890123"
#: Texts that PostgreSQL or Python reads as a number, or that look like one.
SPELLINGS = (
    "0x1A", "0X1a", "0o17", "0b11", "1_000", "1_0.5", " 12 ", "12 ", "\t12", "12\n", "+5", "-5", "--5", "007",
    "0" * 30 + "7", "infinity", "Infinity", "-inf", "nan", "NaN", "1e400", "-1e400", "1e-400", "1e3", "1E+3", "1.",
    ".5", ".", "-", "-0", "1,5", "٣", "１２", "½", "1e", "0x1p3", "1d3", "1f", "1.5e1.5", "12\x0b", "12\xa0",
    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "1" * 400, "0" * 5000 + "1", "1760000000.5",
    "-1e-7", "-0.0000004", "-0.0000006", "4102444799.9999995", "4102444799.9999999", "4102444800", "1" * 5000, "''",
    "NULL", "null", "{1}", '"1"', "\\1", "1;2", "true", "1::int",
)  # fmt: skip

spelled = st.one_of(
    st.sampled_from(SPELLINGS),
    st.text("0123456789+-.eEx_ ", max_size=12),
    st.from_regex(r"[ ]?[+-]?(0[xob])?[0-9a-f_]{1,8}(\.[0-9]{0,3})?([eE][+-]?[0-9]{1,3})?[ ]?", fullmatch=True),
    st.text(st.characters(categories=["Nd", "Zs"]), min_size=1, max_size=4),
)


@pytest.fixture
def store(database: Database) -> Iterator[DatabaseClient]:
    with closing(DatabaseClient(Secret(database.url))) as store:
        yield store


def entry(number: int, fields: dict[str, str]) -> Entry:
    return Entry(b"1-%d" % number, [part.encode() for pair in fields.items() for part in pair])


def outcomes(
    database: Database, store: DatabaseClient, table: TableWriter, fields: dict[str, str]
) -> dict[str, object]:
    """The outcome on each path: the stored row, or None for a dead letter."""
    columns, name, stream = (
        ("prices_real_time.*", "prices_real_time", "prices")
        if table is PRICES
        else ("session, number, at, event, detail::text", "feed_events", "prices:feed")
    )
    good = {**(GOOD if table is PRICES else EVENT)._asdict(), "session": OTHER_SESSION}
    bad = {**good, "session": "no number"}
    paths: dict[str, tuple[list[dict[str, str]], bool]] = {
        "alone": ([fields], False),
        "beside a good row": ([fields, good], False),
        "beside a bad row": ([fields, bad], False),
        "alone, row by row": ([fields], True),
        "beside a bad row, row by row": ([bad, fields, good], True),
    }
    found: dict[str, object] = {}
    for path, (rows, bisect) in paths.items():
        database.query("TRUNCATE prices_real_time, feed_events, dead_letters")
        Writer(store).insert_batch(
            table, stream, [entry(number, row) for number, row in enumerate(rows)], bisect=bisect
        )
        stored = database.query(f"SELECT {columns} FROM {name} WHERE session <> {OTHER_SESSION}")
        assert database.count(name) + database.count("dead_letters") == len(rows)
        found[path] = repr(stored) if stored else None
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(tick.Tick._fields), text=spelled)
@example(field="price", text="0x1A")
@example(field="seq", text="0x1A")
@example(field="seq", text="1_000")
@example(field="received", text=" 12 ")
@example(field="seq", text="+5")
@example(field="seq", text="0" * 30 + "7")
@example(field="time", text="-1e-7")
@example(field="time", text="4102444799.9999995")
@example(field="price", text="1e-400")
def test_tick_has_the_same_outcome_on_every_path(
    database: Database, store: DatabaseClient, field: str, text: str
) -> None:
    found = outcomes(database, store, PRICES, {**GOOD._asdict(), field: text})
    assert len(set(found.values())) == 1, found
    if tick.validation_error(GOOD._replace(**{field: text})):
        assert set(found.values()) == {None}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(feed_event.INTEGERS), text=spelled)
@example(field="number", text="0x1A")
@example(field="at", text="1_000")
def test_feed_event_has_the_same_outcome_on_every_path(
    database: Database, store: DatabaseClient, field: str, text: str
) -> None:
    found = outcomes(database, store, FEED, {**EVENT._asdict(), field: text})
    assert len(set(found.values())) == 1, found
    if feed_event.validation_error(EVENT._replace(**{field: text})):
        assert set(found.values()) == {None}


@pytest.mark.parametrize("text", SPELLINGS, ids=range(len(SPELLINGS)))
def test_each_unusual_spelling_has_one_outcome(database: Database, store: DatabaseClient, text: str) -> None:
    for field in ("seq", "received", "price", "time"):
        found = outcomes(database, store, PRICES, {**GOOD._asdict(), field: text})
        assert len(set(found.values())) == 1, (field, found)
