"""Rows of other programs and vendors become ticks, or have a reason why not."""

from __future__ import annotations

import pytest

from common.errors import ConfigurationError
from tickpipe.files.columns import COLUMNS, InvalidRowError, NewTick, choose_columns, read_columns, to_micros, to_tick


def reason(**values: str | None) -> str:
    """The reason why a good row with these values is not a tick; empty if it is one."""
    row = {"time": "1772445600250000", "symbol": "AAPL", "price": "1.5", **values}
    try:
        to_tick([row.get(name) for name in COLUMNS])
    except InvalidRowError as error:
        return str(error)
    return ""


def test_a_row_becomes_a_tick() -> None:
    row = ["1772445600250000", "AAPL", "1.5", "7", None, "", "NASDAQ", "0.25", "buy", "12"]
    assert to_tick(row) == NewTick(1772445600250000, "AAPL", 1.5, 7.0, None, None, "NASDAQ", 0.25, "buy", 12)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ""),
        ({"time": None}, "time is missing"),
        ({"time": "-1000000"}, "time is not between 1970 and 2100"),
        ({"time": "4102444800000000"}, "time is not between 1970 and 2100"),
        ({"time": "infinity"}, "time is not between 1970 and 2100"),
        ({"time": to_micros("22/11/2026")}, "time is neither ISO 8601 nor a number since 1970"),
        ({"symbol": ""}, "symbol is missing"),
        ({"symbol": "x" * 65}, "symbol does not have 1 to 64 characters"),
        ({"symbol": "a\0b"}, "a text has a NUL character"),
        ({"price": None}, "price is missing"),
        ({"price": "NaN"}, "price is not a finite number"),
        ({"price": "$1"}, "price is not a finite number"),
        ({"day_volume": "Infinity"}, "day_volume is not a finite number"),
        ({"side": "up"}, "side is neither buy nor sell"),
        ({"trade_id": "x"}, "trade_id is not a whole number of 64 bits"),
    ],
)
def test_a_row_that_is_not_a_tick_has_a_reason_without_its_value(values: dict[str, str | None], expected: str) -> None:
    assert reason(**values) == expected


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-02T10:00:00.250Z", "2026-03-02 10:00:00.25", "2026-03-02T12:00:00.25+02:00", "1772445600.25",
        "1772445600250", "1772445600250000", "1772445600250000000", "1.77244560025e9",
    ],
)  # fmt: skip
def test_times_of_vendors_are_recognised(text: str) -> None:
    assert to_micros(text) == "1772445600250000"


@pytest.mark.parametrize("text", ["ts", "time", "time=", "when=ts", "time=a,time=b"])
def test_invalid_column_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="write OURS=THEIRS once for each column"):
        read_columns(text)


def test_columns_are_chosen_by_their_names() -> None:
    assert read_columns(" time = ts , price=last ,") == {"time": "ts", "price": "last"}
    names = ["ts", "symbol", "last", "bid", "extra"]
    wanted = {"time": "ts", "price": "last"}
    assert choose_columns(names, wanted, "it") == {"time": "ts", "symbol": "symbol", "price": "last", "bid": "bid"}
    assert "symbol" not in choose_columns(["time", "price"], {}, "it", symbol="AAPL")
    with pytest.raises(ConfigurationError, match="it has no column 'tss'"):
        choose_columns(names, {**wanted, "time": "tss"}, "it")
