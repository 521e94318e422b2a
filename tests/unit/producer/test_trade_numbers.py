"""Jumps in the numbers of an exchange are found for each symbol, and nothing else is."""

from __future__ import annotations

import pytest

from common.tick import Tick
from producer import trade_numbers
from producer.trade_numbers import TradeNumbers


def trade(number: object, symbol: str = "BTC/USD", exchange: str = "Coinbase", time: str = "1700000000.5") -> Tick:
    return Tick("1", "1", symbol, time, "1", "", "", "", exchange, str(10**15 + 7), "1", "buy", str(number))


def ranges(*trades: Tick) -> list[tuple[object, object]]:
    numbers = TradeNumbers()
    found = [numbers.skipped(each) for each in trades]
    return [(each["first_id"], each["last_id"]) for each in found if each]


def test_jump_has_the_missing_numbers_and_the_times_around_them() -> None:
    numbers = TradeNumbers()
    assert numbers.skipped(trade(5)) is None
    later = trade(9, time="1700000001")._replace(received="1000000000000099")
    assert numbers.skipped(later) == {
        "symbol": "BTC/USD", "exchange": "Coinbase", "first_id": 6, "last_id": 8, "since": 10**15 + 7,
        "until": 10**15 + 99, "time_min": 1700000000.5, "time_max": 1700000001.0,
    }  # fmt: skip


def test_each_symbol_of_each_exchange_has_its_own_numbers() -> None:
    others = [trade(1), trade(90, symbol="ETH/USD"), trade(50, exchange="Kraken")]
    assert ranges(*others, trade(2), trade(91, symbol="ETH/USD"), trade(51, exchange="Kraken")) == []
    assert ranges(*others, trade(3)) == [(2, 2)]


def test_repeated_and_late_numbers_do_not_count_as_a_jump() -> None:
    assert ranges(*map(trade, (5, 5, 3, 6, 4, 7))) == []
    assert ranges(*map(trade, (5, 7, 6, 8, 12))) == [(6, 6), (9, 11)]


@pytest.mark.parametrize("number", ["", "x", "-1", "1.0", "9" * 19])
def test_other_texts_are_ignored(number: str) -> None:
    assert ranges(trade(1), trade(number), trade(2)) == []


def test_time_without_a_number_is_left_out() -> None:
    numbers = TradeNumbers()
    numbers.skipped(trade(1, time="noon"))
    found = numbers.skipped(trade(3))
    assert found is not None
    assert "time_min" not in found


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trade_numbers, "MAX_KNOWN", 2)
    assert ranges(trade(1, "A"), trade(1, "B"), trade(1, "C"), trade(9, "A")) == []
