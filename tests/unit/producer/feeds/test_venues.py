"""Feeds of exchanges: their messages become trades with all digits, and no message makes them fail."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.settings import FeedOption
from common.tick import Tick, validation_error
from producer.feeds import VENDORS
from producer.feeds.vendor import SubscribeStatus, Vendor, decode_frame, seconds

COINBASE, KRAKEN, BINANCE = VENDORS["coinbase"], VENDORS["kraken"], VENDORS["binance"]
VENUES = [vendor for vendor in VENDORS.values() if vendor.has_trades]
NAMES = ["type", "channel", "method", "product_id", "symbol", "data", "e", "s", "T", "price", "time", "success", "id"]
KINDS = ["match", "subscriptions", "error", "trade", "update", "subscribe", "aggTrade", "1"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers().map(str) | st.sampled_from(KINDS) | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner),
    max_leaves=8,
)
MESSAGES = st.dictionaries(st.sampled_from(NAMES) | st.text(), ANYTHING)
# From the documentation of Kraken's websocket, version 2.
KRAKEN_TRADES = """{"channel": "trade", "type": "update", "data": [
    {"symbol": "MATIC/USD", "side": "sell", "price": 0.5117, "qty": 40.0, "ord_type": "market", "trade_id": 4665906,
     "timestamp": "2023-09-25T07:49:37.708706Z"},
    {"symbol": "MATIC/USD", "side": "buy", "price": 0.51180000000000001, "qty": 1e-8, "ord_type": "limit",
     "trade_id": 4665907, "timestamp": "2023-09-25T07:49:38Z"}]}"""


def ticks(vendor: Vendor, text: str, *symbols: str) -> list[Tick]:
    message = decode_frame(text.encode())
    assert message is not None
    names = {vendor.spell(symbol): symbol for symbol in symbols}
    return [vendor.parse(event, 1, number, 3) for number, event in enumerate(vendor.prices(message, names), 1)]


def answer(vendor: Vendor, message: dict[str, Any], *symbols: str) -> SubscribeStatus | None:
    read = decode_frame(json.dumps(message).encode())
    assert read is not None
    return vendor.answer(read, {vendor.spell(symbol): symbol for symbol in symbols})


def test_trades_of_kraken_keep_all_digits() -> None:
    sold, bought = ticks(KRAKEN, KRAKEN_TRADES, "MATIC/USD")
    assert sold == Tick(
        "1", "1", "MATIC/USD", "1695628177.708706", "0.5117", "", "", "", "Kraken", "3", "40.0", "sell", "4665906"
    )
    assert bought[3:5] == ("1695628178", "0.51180000000000001")
    assert bought[10:] == ("1e-8", "buy", "4665907")
    assert ticks(KRAKEN, KRAKEN_TRADES.replace("update", "snapshot"), "MATIC/USD") == []


def test_trade_of_coinbase_has_the_side_of_the_order_that_caused_it() -> None:
    text = (
        '{"type":"match","trade_id":881614,"side":"sell","size":"0.04","price":"14.7775","product_id":"BAND-GBP",'
        '"sequence":333938798,"time":"2021-04-17T16:43:30.244075Z"}'
    )
    (tick,) = ticks(COINBASE, text, "BAND/GBP")
    assert tick == Tick(
        "1", "1", "BAND/GBP", "1618677810.244075", "14.7775", "", "", "", "Coinbase", "3", "0.04", "buy", "881614"
    )
    assert ticks(COINBASE, text.replace('"match"', '"last_match"'), "BAND/GBP") == []


def test_trade_of_binance_has_the_symbol_that_the_user_wrote() -> None:
    text = (
        '{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1672515782136,"s":"BTCUSDT","a":12345,"p":"0.00100000",'
        '"q":"100","f":100,"l":105,"T":1672515782036,"m":true,"M":true}}'
    )
    (tick,) = ticks(BINANCE, text, "BTC/USDT")
    assert tick == Tick(
        "1", "1", "BTC/USDT", "1672515782.036", "0.00100000", "", "", "", "Binance", "3", "100", "sell", "12345"
    )


@pytest.mark.parametrize("vendor", VENUES, ids=lambda vendor: vendor.name)
def test_symbols_are_subscribed_in_the_spelling_of_the_venue(vendor: Vendor) -> None:
    name = {"coinbase": "BTC-USD", "kraken": "BTC/USD", "binance": "btcusd@aggTrade"}[vendor.name]
    subscribed, ended = vendor.subscribe([vendor.spell("BTC/USD")]), vendor.unsubscribe([vendor.spell("BTC/USD")])
    assert json.dumps(name) in subscribed
    assert json.dumps(name) in ended
    assert subscribed != ended


@pytest.mark.parametrize(
    ("vendor", "message", "expected"),
    [
        (
            COINBASE,
            {"type": "subscriptions", "channels": [{"name": "matches", "product_ids": ["BTC-USD"]}, {"name": "x"}]},
            SubscribeStatus(("BTC/USD",), {}),
        ),
        (
            COINBASE,
            {"type": "error", "message": "Failed to subscribe", "reason": "X-USD is not a valid product"},
            SubscribeStatus((), {}, "X-USD is not a valid product"),
        ),
        (COINBASE, {"type": "heartbeat", "product_id": "BTC-USD", "last_trade_id": 7}, None),
        (
            KRAKEN,
            {"method": "subscribe", "success": True, "result": {"channel": "trade", "symbol": "BTC/USD"}},
            SubscribeStatus(("BTC/USD",), {}),
        ),
        (
            KRAKEN,
            {"method": "subscribe", "success": False, "symbol": "X/USD", "error": "Currency pair not supported X/USD"},
            SubscribeStatus((), {"X/USD": "Currency pair not supported X/USD"}, "Currency pair not supported X/USD"),
        ),
        (KRAKEN, {"channel": "heartbeat"}, None),
        (BINANCE, {"result": None, "id": 1}, SubscribeStatus(("BTC/USD",), {})),
        (BINANCE, {"result": None, "id": 2}, None),
        (
            BINANCE,
            {"error": {"code": 2, "msg": "Invalid request"}, "id": 1},
            SubscribeStatus((), {}, "Invalid request"),
        ),
    ],
)
def test_answers_to_a_subscription(vendor: Vendor, message: dict[str, Any], expected: SubscribeStatus | None) -> None:
    assert answer(vendor, message, "BTC/USD") == expected


@pytest.mark.parametrize("kind", ["heartbeat", "last_match"])
def test_coinbase_reports_the_number_of_the_last_trade(kind: str) -> None:
    text = (
        f'{{"type":"{kind}","last_trade_id":20,"trade_id":20,"product_id":"BTC-USD","sequence":90,'
        '"time":"2014-11-07T08:19:28.464459Z"}'
    )
    message = decode_frame(text.encode())
    assert message is not None
    assert COINBASE.last_trade(message, {"BTC-USD": "BTC/USD"}) == {
        "symbol": "BTC/USD", "exchange": "Coinbase", "trade_id": "20", "timestamp": "1415348368.464459",
    }  # fmt: skip
    assert COINBASE.last_trade(message, {}) is None


def test_instrument_of_a_venue_has_its_currencies() -> None:
    event = {"symbol": "BTC/USD", "exchange": "Kraken", "price": "1"}
    assert KRAKEN.instrument(event) == {
        "symbol": "BTC/USD", "exchange": "Kraken", "type": "Digital Currency", "currency_base": "BTC",
        "currency_quote": "USD",
    }  # fmt: skip


@pytest.mark.parametrize("vendor", VENUES, ids=lambda vendor: vendor.name)
@settings(max_examples=100)
@given(message=MESSAGES)
def test_any_message_is_harmless(vendor: Vendor, message: dict[str, Any]) -> None:
    for event in vendor.prices(message, {"BTC-USD": "BTC/USD"}):
        tick = vendor.parse(event, 1, 2, 3)
        assert all(type(value) is str for value in tick)
        assert all(type(value) is str for value in vendor.instrument(event).values())
        validation_error(tick)
    vendor.answer(message, {"BTC-USD": "BTC/USD"})
    vendor.is_error(message)
    vendor.last_trade(message, {"BTC-USD": "BTC/USD"})
    vendor.trades(message, "BTC/USD")
    vendor.refusal(message)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2021-04-17T16:43:30.244075Z", "1618677810.244075"),
        ("2021-04-17T16:43:30Z", "1618677810"),
        ("2021-04-17T18:43:30.5+02:00", "1618677810.5"),
        ("2021-04-17T16:43:30.123456789Z", "1618677810.123456789"),
        ("yesterday", "yesterday"),
        (None, ""),
    ],
)
def test_time_becomes_seconds_with_all_digits(moment: object, expected: str) -> None:
    assert seconds(moment) == expected


def test_each_feed_is_an_option() -> None:
    assert tuple(VENDORS) == get_args(get_args(FeedOption)[0])
