"""Twelve Data's messages become ticks and feed events."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.tick import Tick
from producer.feeds.twelvedata import TwelveData
from producer.feeds.vendor import SubscribeStatus, decode_frame

T = TypeVar("T")
FIELDS = ["event", "symbol", "timestamp", "price", "day_volume", "bid", "ask", "exchange", "type", "currency"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.sampled_from([*FIELDS, "success", "fails"]) | st.text(), ANYTHING)
VENDOR = TwelveData()


def status(event: dict[str, Any]) -> SubscribeStatus:
    """The answer to a subscription in this event."""
    found = VENDOR.answer({**event, "event": "subscribe-status"}, {})
    assert found is not None
    return found


# --- Frames


def test_numbers_keep_their_original_text() -> None:
    frame = (
        b'{"price": 1.10, "timestamp": 1700000000, "bid": -0.0, "ask": 1E+5, "n": 0.1000000000000000055511151231257827}'
    )
    assert decode_frame(frame) == {
        "price": "1.10",
        "timestamp": "1700000000",
        "bid": "-0.0",
        "ask": "1E+5",
        "n": "0.1000000000000000055511151231257827",
    }
    assert decode_frame(b'{"price": NaN, "volume": ' + b"9" * 5000 + b"}") == {"price": "NaN", "volume": "9" * 5000}


@pytest.mark.parametrize(
    "frame",
    [b"", b"{no", b"\x00\xff\xfe", b"[1]", b'"text"', b"1", b"null", b'{"a": "\xe9"}', b"[" * 10**6, b'{"a":' * 10**6],
    ids=lambda frame: repr(frame[:12]),
)  # fmt: skip
def test_frame_that_is_not_a_json_object_is_none(frame: bytes) -> None:
    assert decode_frame(frame) is None


def called_deeper(levels: int, function: Callable[[], T]) -> T:
    return called_deeper(levels - 1, function) if levels else function()


def test_deeply_nested_json_is_harmless() -> None:
    frames = (b'{"event": "price", "symbol": %b%b}' % (b"[" * depth, b"]" * depth) for depth in range(2000, 100, -1))
    event = next(event for frame in frames if (event := decode_frame(frame)) is not None)
    for use in (VENDOR.instrument, lambda event: VENDOR.parse(event, 1, 1, 1), status):
        called_deeper(50, lambda use=use: use(event))  # type: ignore[misc]  # a RecursionError would end the feed


# --- Prices

STOCK = (
    b'{"event":"price","symbol":"AAPL","currency":"USD","exchange":"NASDAQ","mic_code":"XNGS","type":"Common Stock",'
    b'"timestamp":1700000001,"price":228.5,"day_volume":27631112}'
)
CRYPTO = (
    b'{"event":"price","symbol":"BTC/USD","currency_base":"Bitcoin","currency_quote":"US Dollar",'
    b'"exchange":"Coinbase Pro","type":"Digital Currency","timestamp":1700000002,"price":96480.10,"bid":96480.0,'
    b'"ask":96480.2,"day_volume":9200.1234}'
)
FOREX = (
    b'{"event":"price","symbol":"EUR/USD","currency_base":"Euro","currency_quote":"US Dollar",'
    b'"type":"Physical Currency","timestamp":1700000003,"price":1.05410,"bid":1.0541,"ask":1.0542}'
)


@pytest.mark.parametrize(
    ("frame", "tick", "about"),
    [
        (
            STOCK,
            ("AAPL", "1700000001", "228.5", "27631112", "", "", "NASDAQ"),
            {"symbol": "AAPL", "type": "Common Stock", "exchange": "NASDAQ", "mic_code": "XNGS", "currency": "USD"},
        ),
        (
            CRYPTO,
            ("BTC/USD", "1700000002", "96480.10", "9200.1234", "96480.0", "96480.2", "Coinbase Pro"),
            {
                "symbol": "BTC/USD",
                "type": "Digital Currency",
                "exchange": "Coinbase Pro",
                "currency_base": "Bitcoin",
                "currency_quote": "US Dollar",
            },
        ),
        (
            FOREX,
            ("EUR/USD", "1700000003", "1.05410", "", "1.0541", "1.0542", ""),
            {
                "symbol": "EUR/USD",
                "type": "Physical Currency",
                "currency_base": "Euro",
                "currency_quote": "US Dollar",
            },
        ),
    ],
    ids=["stock", "crypto", "forex"],
)
def test_stock_crypto_and_forex_events_become_ticks_and_instruments(
    frame: bytes, tick: tuple[str, ...], about: dict[str, str]
) -> None:
    event = decode_frame(frame)
    assert event is not None
    assert VENDOR.parse(event, 7, 8, 9) == Tick._make(["7", "8", *tick, "9", "", "", ""])
    assert VENDOR.instrument(event) == about


@settings(max_examples=60)
@given(OBJECTS)
def test_parsing_never_raises(event: dict[str, Any]) -> None:
    tick = VENDOR.parse(event, 1, 2, 3)
    assert (tick.session, tick.seq, tick.received) == ("1", "2", "3")
    assert all(type(value) is str for value in tick)
    assert all(type(value) is str for value in VENDOR.instrument(event).values())
    answer = status(event)
    assert all(type(text) is str for text in [*answer.accepted, *answer.refused, *answer.refused.values()])


@settings(max_examples=60)
@given(OBJECTS)
def test_any_json_value_is_decoded_and_parsed(event: dict[str, Any]) -> None:
    read = decode_frame(json.dumps(event).encode())
    assert read is not None
    tick = VENDOR.parse(read, 1, 2, 3)
    for name, value in (("symbol", tick.symbol), ("price", tick.price)):
        if type(event.get(name)) in {int, float}:
            assert value == json.dumps(event[name])
        elif event.get(name) is None:
            assert value == ""


# --- Subscription


@pytest.mark.parametrize(
    ("event", "accepted", "refused"),
    [
        ({}, (), {}),
        ({"success": None, "fails": None}, (), {}),
        ({"success": [{"symbol": "AAPL", "exchange": "NASDAQ"}, {"symbol": "RY"}]}, ("AAPL", "RY"), {}),
        ({"success": ["AAPL"], "fails": ["X"]}, ("AAPL",), {"X": "refused"}),
        ({"fails": [{"symbol": "X", "message": "not in your plan"}]}, (), {"X": "not in your plan"}),
        ({"fails": [{"symbol": "X", "message": None}, {"symbol": "Y"}]}, (), {"X": "refused", "Y": "refused"}),
        ({"success": "AAPL", "fails": {"symbol": "X"}}, (), {}),
        ({"success": [None, 1, [], {"symbol": None}, {"symbol": 7}, {}, {"symbol": "A"}]}, ("A",), {}),
    ],
)
def test_subscribe_status_lists_successes_and_failures(
    event: dict[str, Any], accepted: tuple[str, ...], refused: dict[str, str]
) -> None:
    assert status(event) == SubscribeStatus(accepted, refused)
