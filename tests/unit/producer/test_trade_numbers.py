"""Jumps in the numbers of an exchange, and repeated trades, are found for each symbol, and nothing else is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer import trade_numbers
from producer.trade_numbers import NEXT, REPEATED, TradeNumbers

NOW = 10**15 + 7


def trade(
    number: object, symbol: str = "BTC/USD", exchange: str = "Coinbase", time: object = 1_700_000_000.5
) -> dict[str, Any]:
    return {"symbol": symbol, "exchange": exchange, "timestamp": str(time), "trade_id": str(number)}


def ranges(*trades: Mapping[str, Any]) -> list[tuple[object, object]]:
    numbers = TradeNumbers()
    found = [numbers.check(each, NOW).skipped for each in trades]
    return [(each["first_id"], each["last_id"]) for each in found if each]


def repeated(*trades: Mapping[str, Any]) -> list[bool]:
    numbers = TradeNumbers()
    return [numbers.check(each, NOW).repeated for each in trades]


def test_jump_has_the_missing_numbers_and_the_times_around_them() -> None:
    numbers = TradeNumbers()
    assert numbers.check(trade(5), NOW) == NEXT
    assert numbers.check(trade(9, time=1_700_000_001), NOW + 92).skipped == {
        "symbol": "BTC/USD", "exchange": "Coinbase", "first_id": 6, "last_id": 8, "since": NOW, "until": NOW + 92,
        "time_min": 1700000000.5, "time_max": 1700000001.0,
    }  # fmt: skip


def test_each_symbol_of_each_exchange_has_its_own_numbers() -> None:
    others = [trade(1), trade(90, symbol="ETH/USD"), trade(50, exchange="Kraken")]
    assert ranges(*others, trade(2), trade(91, symbol="ETH/USD"), trade(51, exchange="Kraken")) == []
    assert ranges(*others, trade(3)) == [(2, 2)]


def test_repeated_and_late_numbers_do_not_count_as_a_jump() -> None:
    assert ranges(*map(trade, (5, 5, 3, 6, 4, 7))) == []
    assert ranges(*map(trade, (5, 7, 6, 8, 12))) == [(6, 6), (9, 11)]


def test_trade_is_repeated_only_if_it_was_received_before() -> None:
    assert repeated(*map(trade, (5, 5, 8, 6, 6, 7, 8, 9))) == [False, True, False, False, True, False, True, False]
    assert repeated(*map(trade, (5, 3, 3, 4, 4, 6))) == [False, False, True, False, True, False], (
        "also before the first"
    )


def test_trade_before_the_subscription_is_accepted_once() -> None:
    numbers = TradeNumbers()
    numbers.announce(trade(10), NOW)
    assert [numbers.check(trade(number), NOW) for number in (10, 10, 11, 10)] == [NEXT, REPEATED, NEXT, REPEATED]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80))
def test_any_order_accepts_each_known_number_once(order: list[int]) -> None:
    numbers = TradeNumbers()
    first = order[0]
    accepted: list[int] = []
    missing: set[int] = set()
    for number in order:
        found = numbers.check(trade(number), NOW)
        if found.skipped:
            first_id, last_id = (int(str(found.skipped[name])) for name in ("first_id", "last_id"))
            missing |= set(range(first_id, last_id + 1))
        if not found.repeated:
            accepted.append(number)
    assert sorted(accepted) == sorted(set(order))
    known = [number for number in accepted if number >= first]
    assert missing - set(known) == set(range(first, max(order) + 1)) - set(known)


def test_memory_of_ranges_is_bounded_and_no_unknown_number_counts_as_repeated() -> None:
    odd = [trade(number) for number in range(1, 1001, 2)]
    assert repeated(*odd, trade(2), trade(998), trade(999)) == [False] * 502 + [True]


def test_numbers_that_begin_again_are_accepted(caplog: pytest.LogCaptureFixture) -> None:
    numbers = TradeNumbers()
    for number in (100, 101):
        numbers.check(trade(number, time=50), NOW)
    assert numbers.check(trade(1, time=51), NOW) == NEXT
    assert "Coinbase begins to number trades of BTC/USD again: 1 after 101" in caplog.text
    assert numbers.check(trade(2, time=51), NOW) == NEXT
    assert numbers.check(trade(2, time=51), NOW) == REPEATED
    assert numbers.check(trade(3, time="noon"), NOW) == NEXT
    assert numbers.check(trade(3, time="noon"), NOW) == REPEATED


@pytest.mark.parametrize("number", ["", "0", "x", "-1", "1.0", "9" * 19, "٣"])
def test_other_texts_are_ignored(number: str) -> None:
    assert ranges(trade(1), trade(number), trade(number), trade(2)) == []
    assert repeated(trade(1), trade(number), trade(number)) == [False] * 3
    assert TradeNumbers().check({"trade_id": None}, NOW) == NEXT
    assert TradeNumbers().announce(trade(number), NOW) is None


def test_number_that_an_exchange_reports_is_compared() -> None:
    numbers = TradeNumbers()
    assert numbers.announce(trade(7), NOW) is None, "nothing was received before"
    assert numbers.check(trade(9), NOW + 1).skipped is not None
    found = numbers.announce(trade(12), NOW + 2)
    assert found is not None
    assert (found["first_id"], found["last_id"], found["since"], found["until"]) == (10, 12, NOW + 1, NOW + 2)
    assert numbers.announce(trade(12), NOW) is None
    assert numbers.announce(trade(3), NOW) is None
    assert numbers.check(trade(12), NOW) == NEXT, "it arrives late"
    assert numbers.check(trade(13), NOW) == NEXT


def test_symbols_that_are_no_longer_subscribed_are_forgotten() -> None:
    numbers = TradeNumbers()
    numbers.check(trade(1), NOW)
    numbers.check(trade(1, symbol="ETH/USD"), NOW)
    numbers.forget(["BTC/USD"])
    assert numbers.check(trade(50), NOW) == NEXT
    assert numbers.check(trade(50, symbol="ETH/USD"), NOW).skipped


def test_time_without_a_number_is_left_out() -> None:
    numbers = TradeNumbers()
    numbers.check(trade(1, time="noon"), NOW)
    found = numbers.check(trade(3), NOW).skipped
    assert found is not None
    assert "time_min" not in found


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trade_numbers, "MAX_KNOWN", 2)
    assert ranges(trade(1, "A"), trade(1, "B"), trade(1, "C"), trade(9, "A")) == []
