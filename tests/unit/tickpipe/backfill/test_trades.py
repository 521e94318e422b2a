"""Trades are requested until the range is complete, and every refusal of an exchange has a clear error."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, cast

import pytest

from common.database.client import DatabaseClient
from common.errors import ConfigurationError, OutageError, TickpipeError
from common.tick import Tick
from producer.feeds import VENDORS
from producer.feeds.vendor import Event, TradeRange, Vendor, decode
from tests.support.recorded_venue import Rest, recorded_venue
from tickpipe.backfill import trades
from tickpipe.backfill.rate_limit import RateLimiter
from tickpipe.backfill.trades import Missing, RefusedRequestError, TradesRest

COINBASE, KRAKEN, BINANCE = (VENDORS[name] for name in ("coinbase", "kraken", "binance"))
SINCE = Decimal("1700000000.25")
NO_STORE = cast("DatabaseClient", None)


def event(number: int, exchange: str, **other: object) -> Event:
    return {
        "symbol": "BTC/USD", "timestamp": "1700000000", "price": "1", "exchange": exchange, "trade_id": str(number),
        **other,
    }  # fmt: skip


def missing(first: int, last: int) -> Missing:
    return Missing("BTC/USD", TradeRange(first, last, SINCE))


def repaired(
    monkeypatch: pytest.MonkeyPatch, vendor: Vendor, wanted: Missing, answers: Sequence[list[Event]]
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """The numbers of each batch that was stored, and the ranges that were requested."""
    batches: list[list[int]] = []
    asked: list[tuple[int, int]] = []

    def keep(_: DatabaseClient, ticks: Sequence[Tick]) -> int:
        batches.append(sorted(int(tick.trade_id) for tick in ticks))
        return len(ticks)

    def request(wanted: Missing) -> list[Event]:
        asked.append((wanted.range.first, wanted.range.last))
        return answers[len(asked) - 1]

    monkeypatch.setattr(trades, "keep", keep)
    result: Counter[str] = Counter()
    trades.repair(vendor, [wanted], request, NO_STORE, result, lambda *_: None)
    assert result["BTC/USD"] == sum(map(len, batches))
    return batches, asked


def test_range_is_requested_from_its_end_if_the_newest_trades_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [[event(number, "Coinbase") for number in numbers] for numbers in ((9, 8), (7, 6, 5), (4, 3))]
    assert repaired(monkeypatch, COINBASE, missing(4, 9), answers) == (
        [[8, 9], [5, 6, 7], [4]],
        [(4, 9), (4, 7), (4, 4)],
    )


def test_range_is_requested_from_its_beginning_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [[event(number, "Binance") for number in numbers] for numbers in ((4, 5), (6, 7, 8))]
    assert repaired(monkeypatch, BINANCE, missing(4, 7), answers) == ([[4, 5], [6, 7]], [(4, 7), (6, 7)])


def test_trades_that_the_exchange_does_not_have_stay_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [[event(9, "Coinbase"), event(8, "Coinbase", price="NaN"), event(7, "Coinbase")], []]
    assert repaired(monkeypatch, COINBASE, missing(4, 9), answers)[0] == [[7, 9]]
    assert "Coinbase Exchange has no trades 4 to 6 of BTC/USD" in caplog.text


def request(rest: Rest, vendor: Vendor = COINBASE) -> list[Event]:
    """The answer of an exchange to one request, without a second attempt."""
    with recorded_venue([], rest) as url:
        limiter = RateLimiter(10, threading.Event(), sleep=lambda _: None)
        client = TradesRest(vendor, url.replace("ws:", "http:"), {}, limiter)
        try:
            return client.trades(missing(5, 7)._replace(symbol="BTC/USDT"))
        finally:
            client.close()


def test_binance_is_asked_by_the_first_number() -> None:
    asked: list[Any] = []

    def rest(path: str, parameters: dict[str, str]) -> object:
        asked.append((path, parameters))
        return [{"a": 5, "p": "0.00100000", "q": "2", "f": 1, "l": 2, "T": 1672515782036, "m": False, "M": True}]

    (found,) = request(rest, BINANCE)
    assert asked == [("/api/v3/aggTrades", {"symbol": "BTCUSDT", "fromId": "5", "limit": "3"})]
    assert BINANCE.parse(found, 0, 0, 0)[2:] == (
        "BTC/USDT", "1672515782.036", "0.00100000", "", "", "", "Binance", "0", "2", "buy", "5",
    )  # fmt: skip


def test_ranges_that_one_answer_has_are_requested_together() -> None:
    found = [missing(5, 9), missing(50, 50), missing(1004, 1004), missing(1005, 3000)]
    other = missing(3001, 3001)._replace(symbol="ETH/USD")
    assert trades.joined([*found, other]) == [missing(5, 1004), missing(1005, 3000), other]
    assert trades.joined([missing(1, 9), missing(3, 4)]) == [missing(1, 9)]
    assert trades.joined([]) == []


def test_kraken_is_asked_from_a_time_on_until_the_numbers_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer ends before the missing trades, and the last one goes beyond them."""
    answers = [
        [event(number, "Kraken", timestamp=str(1700000000 + number)) for number in numbers]
        for numbers in ((1, 2, 3), (3, 4, 5), (5, 6, 7, 8))
    ]
    assert repaired(monkeypatch, KRAKEN, missing(4, 7), answers) == ([[4, 5], [6, 7]], [(4, 7), (4, 7), (6, 7)])


@pytest.mark.parametrize("numbers", [(), (1, 2)])
def test_kraken_without_the_trades_is_not_asked_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, numbers: Sequence[int]
) -> None:
    answer = [event(number, "Kraken", timestamp="1700000003") for number in numbers]
    assert repaired(monkeypatch, KRAKEN, missing(4, 7), [answer] * 3)[0] == []
    assert "Kraken has no trades 4 to 7 of BTC/USD" in caplog.text


def test_kraken_is_asked_in_nanoseconds_and_answers_with_lists() -> None:
    asked: list[Any] = []

    def rest(path: str, parameters: dict[str, str]) -> object:
        asked.append((path, parameters))
        trades = [["30243.40000", "0.34507674", 1688669597.8277369, "b", "m", "", 61044952], ["odd"], None]
        return {"error": [], "result": {"XXBTZUSD": trades, "last": "1688671969993150842"}}

    (found,) = request(rest, KRAKEN)
    assert asked == [("/0/public/Trades", {"pair": "BTCUSDT", "since": "1700000000249999999", "count": "1000"})]
    assert KRAKEN.parse(found, 0, 0, 0)[2:] == (
        "BTC/USDT", "1688669597.8277369", "30243.40000", "", "", "", "Kraken", "0", "0.34507674", "buy", "61044952",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("EQuery:Unknown asset pair", RefusedRequestError),
        ("EGeneral:Too many requests", OutageError),
        ("EAPI:Rate limit exceeded", OutageError),
    ],
)
def test_kraken_refuses_with_status_200(reason: str, error: type[TickpipeError]) -> None:
    with pytest.raises(error, match=f"Kraken says {reason}"):
        request(lambda *_: {"error": [reason]}, KRAKEN)


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (404, RefusedRequestError, "Coinbase Exchange says 404 to a request for BTC/USDT"),
        (503, OutageError, "says 503"),
        (429, OutageError, "too many requests"),
    ],
)
def test_refusals_are_errors(status: int, error: type[TickpipeError], words: str) -> None:
    with pytest.raises(error, match=words):
        request(lambda *_: status)


@pytest.mark.parametrize("answer", [None, "text", {"message": "x"}, [1, None], [{}]])
def test_unexpected_answers_have_no_trades(answer: object) -> None:
    found = [COINBASE.parse(each, 0, 0, 0).trade_id for each in request(lambda *_: answer)]
    assert set(found) <= {""}
    assert decode(json.dumps(answer).encode()[:-1]) is None


def test_server_that_does_not_answer_is_an_outage() -> None:
    client = TradesRest(COINBASE, "http://127.0.0.1:1", {}, RateLimiter(9, threading.Event(), sleep=lambda _: None))
    with pytest.raises(OutageError, match="Coinbase Exchange does not answer"):
        client.trades(missing(1, 2))


def test_vendor_without_requests_for_trades_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Twelve Data answers no requests"):
        TradesRest(VENDORS["twelvedata"], None, {}, RateLimiter(9, threading.Event()))


@pytest.mark.parametrize("url", ["", "api.exchange.coinbase.com", "ftp://host", "http://user:secret@host"])
def test_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is not a web address\. Example: https://api") as caught:
        TradesRest(COINBASE, url, {}, RateLimiter(9, threading.Event()))
    assert "secret" not in str(caught.value)
