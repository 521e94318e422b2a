"""The codec of stream entries: encoded values round-trip, and other entries are refused with their fields."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common import feed_event, tick
from common.codec import Codec
from common.errors import BadDataError, DecodeError
from common.feed_event import FeedEvent
from common.tick import Tick

#: Any text that UTF-8 and PostgreSQL can store.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
RECORDS = st.one_of(
    st.tuples(*[TEXT] * 10, *[TEXT | st.just("")] * 3).map(Tick._make), st.tuples(*[TEXT] * 5).map(FeedEvent._make)
)
CODECS: dict[type, Codec[Any]] = {Tick: tick.CODEC, FeedEvent: feed_event.CODEC}
TICK = Tick("1700000000000000", "1", "BTC/USD", "1700000000", "1.10", "", "", "", "Coinbase", "1700000000000001")


def on_the_wire(fields: Mapping[str, str]) -> dict[bytes, bytes]:
    """The fields as Redis returns them."""
    return {name.encode(): value.encode(errors="surrogatepass") for name, value in fields.items()}


@given(RECORDS)
@example(Tick(*'"\\{},\n€😀 x'))
@example(Tick(*"abcdefghijklm"))
def test_encoded_ticks_and_events_round_trip(record: Tick | FeedEvent) -> None:
    codec = CODECS[type(record)]
    assert codec.decode(on_the_wire(codec.encode(record))) == record


@pytest.mark.parametrize("record", [Tick(*"abcdefghijklm"), FeedEvent(*"abcde")], ids=["tick", "feed event"])
def test_entry_fields_have_a_fixed_order(record: Tick | FeedEvent) -> None:
    assert tuple(CODECS[type(record)].encode(record).items()) == tuple(zip(record._fields, record, strict=True))


def test_entry_fields_match_the_contract() -> None:
    assert " ".join(Tick._fields) == (
        "session seq symbol time price day_volume bid ask exchange received size side trade_id"
    )
    assert " ".join(FeedEvent._fields) == "session number at event detail"


@given(st.randoms(use_true_random=False))
def test_fields_are_read_by_name_rather_than_position(rng: random.Random) -> None:
    shuffled = list(on_the_wire(tick.encode(TICK)).items())
    rng.shuffle(shuffled)
    assert tick.decode(dict(shuffled)) == TICK


GOOD = on_the_wire(tick.encode(TICK))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({**GOOD, b"extra": b"1"}, "not those of a tick: session, .*extra"),
        ({name: value for name, value in GOOD.items() if name != b"price"}, "not those of a tick"),
        ({b"Price" if name == b"price" else name: value for name, value in GOOD.items()}, "Price"),
        ({b"\xff": b"1"}, r"not those of a tick: \\xff"),
        ({}, "not those of a tick: none"),
        ({**GOOD, b"symbol": b"A\0B"}, r"symbol holds a NUL character: b'A\\x00B'"),
        ({**GOOD, b"exchange": b"caf\xe9"}, "not UTF-8: b'caf"),
        ({**GOOD, b"symbol": "\ud800".encode(errors="surrogatepass")}, "not UTF-8"),
    ],
    ids=["extra", "missing", "renamed", "foreign bytes", "empty", "NUL", "latin-1", "lone surrogate"],
)
def test_malformed_tick_is_refused_and_its_fields_are_kept(fields: dict[bytes, bytes], words: str) -> None:
    with pytest.raises(DecodeError, match=words) as caught:
        tick.decode(fields)
    assert caught.value.raw == fields
    assert isinstance(caught.value, BadDataError)
    assert isinstance(caught.value, ValueError)


def test_entry_with_a_duplicate_field_name_is_refused() -> None:
    parts = [part for pair in GOOD.items() for part in pair]
    assert tick.CODEC.values(parts) == [*parts[1::2], b"", b"", b""]
    with pytest.raises(DecodeError, match=r"not those of a tick: session, .*received, symbol$"):
        tick.CODEC.values([*parts, b"symbol", b"OTHER"])


def parts_of(record: Tick) -> list[bytes]:
    return [part for pair in on_the_wire(tick.encode(record)).items() for part in pair]


def test_fields_of_a_trade_are_left_out_if_all_are_empty() -> None:
    trade = TICK._replace(size="0.5", side="buy", trade_id="7")
    assert list(tick.encode(TICK)) == list(Tick._fields[:10])
    assert list(tick.encode(TICK._replace(trade_id="7"))) == list(Tick._fields)
    assert tick.CODEC.columns([parts_of(TICK)] * 2)[8:] == [[b"Coinbase"] * 2, [TICK.received.encode()] * 2, [], [], []]
    mixed = tick.CODEC.columns([parts_of(TICK), parts_of(trade)])
    assert mixed[10:] == [[b"", b"0.5"], [b"", b"buy"], [b"", b"7"]]
    assert tick.CODEC.columns([]) == [[]] * 13


@pytest.mark.parametrize("lengths", [(20, 22), (22, 22), (26, 28), (20, 26, 24), (24,)])
def test_batch_with_other_numbers_of_fields_is_refused(lengths: tuple[int, ...]) -> None:
    full = parts_of(TICK._replace(size="1"))
    with pytest.raises(DecodeError):
        tick.CODEC.columns([[*full, b"more", b"1"][:length] for length in lengths])


def test_refusal_message_is_bounded() -> None:
    with pytest.raises(DecodeError) as caught:
        tick.decode({b"x" * 1_000_000: b"1"})
    assert len(str(caught.value)) < 300
