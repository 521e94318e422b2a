"""`tick.validation_error` names the value that the database would refuse."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.tick import MAX_NAME, TIME_RANGE, Tick, validation_error

GOOD = Tick("1700000000000000", "1", "BTC/USD", "1700000000", "1.10", "12.5", "1.09", "1.11", "Coinbase", "17")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"price": "-37.63"},  # oil, April 2020
        {"price": "0"},
        {"price": "1e-9"},
        {"bid": "-1", "ask": "-0.5"},
        {"day_volume": "", "bid": "", "ask": "", "exchange": ""},
        {"time": str(TIME_RANGE[0])},
        {"time": str(TIME_RANGE[1] - 1)},
        {"symbol": "Ü" * MAX_NAME, "exchange": "é" * MAX_NAME},
        {"session": str(2**63 - 1), "seq": str(-(2**63)), "received": "0"},
    ],
)
def test_valid_tick_has_no_validation_error(values: dict[str, str]) -> None:
    assert validation_error(GOOD._replace(**values)) is None


@pytest.mark.parametrize("field", ["session", "seq", "received"])
@pytest.mark.parametrize("value", ["", "x", "1.0", "1e3", " 1", "--1", "²", "١", str(2**63), "9" * 5000])
def test_session_and_seq_are_64_bit_integers(field: str, value: str) -> None:
    assert_named(field, value, "is not a whole number of 64 bits")


@pytest.mark.parametrize("field", ["time", "price"])
def test_time_and_price_are_required(field: str) -> None:
    assert validation_error(GOOD._replace(**{field: ""})) == f"{field} is missing"


@pytest.mark.parametrize("field", ["time", "price", "day_volume", "bid", "ask"])
@pytest.mark.parametrize("value", ["nan", "Infinity", "-inf", "1e999", "12a", "true", " ", "[1]", "1_000", "１"])
def test_numeric_fields_are_finite(field: str, value: str) -> None:
    assert_named(field, value, "is not a finite number")


@pytest.mark.parametrize("value", ["-1", str(TIME_RANGE[1]), "1700000000000"])
def test_time_is_between_1970_and_2100(value: str) -> None:
    assert_named("time", value, "is not between 1970 and 2100")


@pytest.mark.parametrize(("field", "value"), [("symbol", ""), ("symbol", "S" * 65), ("exchange", "é" * 65)])
def test_names_have_a_maximum_length(field: str, value: str) -> None:
    assert_named(field, value, "characters")


@pytest.mark.parametrize("value", ["Buy", "b", " "])
def test_side_is_buy_or_sell(value: str) -> None:
    assert_named("side", value, "is neither buy nor sell")
    assert validation_error(GOOD._replace(side="sell", size="1e-8", trade_id="9007199254740993")) is None


@pytest.mark.parametrize(("field", "value"), [("size", "nan"), ("size", "1,5"), ("trade_id", "1.0"), ("trade_id", "x")])
def test_size_and_number_of_a_trade_are_numbers(field: str, value: str) -> None:
    assert_named(field, value, "number")


def assert_named(field: str, value: str, words: str) -> None:
    """Assert that the error names the field, the reason and the shortened value."""
    found = validation_error(GOOD._replace(**{field: value}))
    assert found is not None
    assert found.startswith(f"{field} ")
    assert words in found
    assert repr(value)[:70].rstrip("'") in found
    assert len(found) < 200


@given(st.tuples(*[st.one_of(st.text(), st.integers().map(str), st.floats().map(str))] * 13).map(Tick._make))
def test_validation_never_raises_and_accepts_only_storable_ticks(tick: Tick) -> None:
    if validation_error(tick) is None:
        assert TIME_RANGE[0] <= float(tick.time) < TIME_RANGE[1]
        assert all(math.isfinite(float(text)) for text in (tick.price, tick.day_volume or "0", tick.bid or "0"))
        assert 1 <= len(tick.symbol) <= MAX_NAME
        assert len(tick.exchange) <= MAX_NAME


def test_limits_match_the_table() -> None:
    sql = (Path(__file__).parents[3] / "sql" / "0001_prices.sql").read_text(encoding="utf-8")
    first, end = (f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}+00" for seconds in TIME_RANGE)
    assert f"time >= '{first}' AND time < '{end}'" in sql
    assert f"char_length(symbol) BETWEEN 1 AND {MAX_NAME}" in sql
    assert f"char_length(exchange) <= {MAX_NAME}" in sql
