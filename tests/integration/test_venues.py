"""Recorded sessions of exchanges are stored exactly: each trade once, with all its digits."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from tests.support.faults import FaultyExchange
from tests.support.pipeline import Pipeline
from tests.support.processes import Running
from tests.support.recorded_venue import SESSIONS, messages
from tests.support.waiting import wait_for
from tickpipe.simulator.config import ExchangeConfig

#: Columns of a trade, as text: PostgreSQL prints the shortest decimal number that is the same float.
STORED = """
SELECT symbol, price::text, size::text, side, trade_id, to_char(time, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), exchange
FROM prices_real_time ORDER BY seq
"""
OTHER_SIDE = {"buy": "sell", "sell": "buy"}


def start(pipeline: Pipeline, feed: str, url: str, *symbols: str) -> Running:
    return pipeline.processes.start(
        "producer", "--feed", feed, "--url", url, "--symbols", ",".join(symbols), SPOOL_DIR=str(pipeline.folder)
    )


def number(text: str) -> Decimal:
    return Decimal(text).normalize()


@contextmanager
def replayed(session: str, dropped: Collection[int] = ()) -> Iterator[FaultyExchange]:
    """An exchange that sends a recorded session, without the trades of these numbers."""
    (path,) = SESSIONS.glob(f"{session}*")
    config = ExchangeConfig(feed=session.partition("-")[0], replay=path, speed=0)
    with FaultyExchange(config, lambda trade: [] if trade.number in dropped else [trade]) as exchange:
        yield exchange


def store_session(pipeline: Pipeline, feed: str, exchange: FaultyExchange, symbols: list[str], count: int) -> list[Any]:
    """Receive and store the session. Returns the rows in the order of receipt."""
    producer = start(pipeline, feed, exchange.url, *symbols)
    pipeline.consumer()
    pipeline.wait_until_stored(count)
    producer.wait_until_said("subscribed:")
    assert producer.stop() == 0
    wait_for(pipeline.last_seqs)
    verify = pipeline.processes.start("tickpipe", "verify", "--json", "--claim-idle", "0.5")
    assert verify.wait() == 0, verify.said()
    (found,) = verify.json()
    assert found["state"] == "complete"
    assert sum(each["received"] for each in found["trades"]) == count
    return pipeline.database.query(STORED)


def test_coinbase_session_is_stored_exactly(pipeline: Pipeline) -> None:
    texts = messages("coinbase")
    events = [json.loads(text) for text in texts]
    matches = [event for event in events if event["type"] == "match"]
    assert len(matches) == 97
    names = sorted({event["product_id"] for event in events if "product_id" in event})
    symbols = [name.replace("-", "/") for name in names]
    with replayed("coinbase") as exchange:
        rows = store_session(pipeline, "coinbase", exchange, symbols, len(matches))
    expected = [
        (
            event["product_id"].replace("-", "/"), number(event["price"]), number(event["size"]),
            OTHER_SIDE[event["side"]], event["trade_id"], event["time"], "Coinbase",
        )
        for event in matches
    ]  # fmt: skip
    assert [(symbol, number(price), number(size), *rest) for symbol, price, size, *rest in rows] == expected
    numbers = {
        each["product_id"].replace("-", "/"): [each["trade_id"]] for each in events if each["type"] == "last_match"
    }
    for symbol, _, _, _, trade_id, *_ in rows:
        numbers[symbol].append(trade_id)
    assert len(numbers) == 10
    assert all(later == earlier + 1 for ids in numbers.values() for earlier, later in pairwise(ids))
    found = verdict(pipeline)
    assert found["skipped"] == []
    assert {each["symbol"]: each["received"] for each in found["trades"]} == {
        symbol: len(ids) - 1 for symbol, ids in numbers.items() if len(ids) > 1
    }
    assert "by the numbers of Coinbase: 97 trades received, 0 missing, 0 repaired" in found["lines"]


def verdict(pipeline: Pipeline) -> dict[str, Any]:
    """The verdict on the only session, with the lines that people see."""
    verify = pipeline.processes.start("tickpipe", "verify", "--all", "--json", "--claim-idle", "0.5")
    assert verify.wait() == 0, verify.said()
    shown = pipeline.processes.start("tickpipe", "verify", "--all", "--claim-idle", "0.5")
    assert shown.wait() == 0
    (found,) = verify.json()
    return {**found, "lines": shown.said()}


def test_trades_that_the_exchange_did_not_send_are_named(pipeline: Pipeline) -> None:
    """Five numbers are dropped on the wire, two of them in a row."""
    texts = messages("coinbase")
    trades = [json.loads(text) for text in texts]
    ours = [each["trade_id"] for each in trades if each["type"] == "match" and each["product_id"] == "SKL-USD"]
    other = [each["trade_id"] for each in trades if each["type"] == "match" and each["product_id"] == "BAND-GBP"]
    dropped = {ours[2], ours[3], ours[6], ours[-2], other[1]}
    count = len([each for each in trades if each["type"] == "match" and each["product_id"] in {"SKL-USD", "BAND-GBP"}])
    with replayed("coinbase", dropped) as exchange:
        store_session(pipeline, "coinbase", exchange, ["SKL/USD", "BAND/GBP"], count - 5)
    found = verdict(pipeline)
    assert {(each["symbol"], each["first"], each["last"]) for each in found["skipped"]} == {
        ("SKL/USD", ours[2], ours[3]), ("SKL/USD", ours[6], ours[6]), ("SKL/USD", ours[-2], ours[-2]),
        ("BAND/GBP", other[1], other[1]),
    }  # fmt: skip
    assert sum(each["missing"] for each in found["skipped"]) == 5
    assert "SKL/USD: 4 trades not received, by the numbers of Coinbase: " in found["lines"]
    gaps = pipeline.database.query("SELECT symbol, cause FROM feed_gaps WHERE cause LIKE 'venue numbers skipped%'")
    assert ("BAND/GBP", f"venue numbers skipped: {other[1]} to {other[1]}") in gaps
    assert len(gaps) == 4
    assert pipeline.database.query("SELECT count(*) FROM feed_outages WHERE cause LIKE 'venue%'") == [(0,)]


def backfill(pipeline: Pipeline, feed: str, url: str) -> str:
    """Run it. Returns what it printed."""
    command = pipeline.processes.start("tickpipe", "backfill", "--feed", feed, "--rest-url", url)
    assert command.wait() == 0, command.said()
    return command.said()


def test_trades_that_were_not_sent_are_requested_by_number(pipeline: Pipeline) -> None:
    texts = messages("coinbase")
    trades = [json.loads(text) for text in texts]
    ours = [each["trade_id"] for each in trades if each["type"] == "match" and each["product_id"] == "SKL-USD"]
    dropped = {*ours[2:6], ours[-2]}
    with replayed("coinbase", dropped) as exchange:
        store_session(pipeline, "coinbase", exchange, ["SKL/USD"], len(ours) - 5)
        exchange.answer_calls((429, {"message": "Public rate limit exceeded"}))
        assert "stored 5 trades of 1 symbol" in backfill(pipeline, "coinbase", exchange.rest_url)
        assert [call["path"] for call in exchange.calls] == ["/products/SKL-USD/trades"] * 2, "the first is refused"
        repaired = verdict(pipeline)
        assert repaired["skipped"] == []
        (ours_now,) = [each for each in repaired["trades"] if each["symbol"] == "SKL/USD"]
        assert (ours_now["missing"], ours_now["repaired"]) == (0, 5)
        assert f"SKL/USD: {len(ours) - 5} trades received, 0 missing, 5 repaired" in repaired["lines"]
        assert pipeline.database.query("SELECT cause FROM feed_gaps WHERE cause LIKE 'venue%'") == []
        assert "stored 0 trades" in backfill(pipeline, "coinbase", exchange.rest_url)
        assert len(exchange.calls) == 2
    rows = pipeline.database.query(STORED.replace("ORDER BY", "WHERE symbol = 'SKL/USD' ORDER BY trade_id, "))
    expected = [each for each in trades if each["type"] == "match" and each["product_id"] == "SKL-USD"]
    assert [(number(row[1]), number(row[2]), *row[3:6]) for row in rows] == [
        (number(each["price"]), number(each["size"]), OTHER_SIDE[each["side"]], each["trade_id"], each["time"])
        for each in expected
    ]
    sources = pipeline.database.query("SELECT count(*) FROM prices_real_time WHERE source = 'backfill'")
    assert sources == [(5,)]
    ((ticks,),) = pipeline.database.query("SELECT sum(ticks) FROM candles_1m WHERE symbol = 'SKL/USD'")
    assert ticks == len(expected)


def test_producer_requests_missing_trades_by_itself(pipeline: Pipeline) -> None:
    """It has `--repair`. The first run of the command finds what consumers have stored by then."""
    texts = messages("coinbase")
    trades = [json.loads(text) for text in texts]
    ours = [each["trade_id"] for each in trades if each["type"] == "match" and each["product_id"] == "SKL-USD"]
    with replayed("coinbase", ours[2:6]) as exchange:
        pipeline.consumer()
        producer = pipeline.processes.start(
            "producer", "--feed", "coinbase", "--url", exchange.url, "--symbols", "SKL/USD", "--repair",
            SPOOL_DIR=str(pipeline.folder), FEED_REST_URL=exchange.rest_url,
        )  # fmt: skip
        producer.wait_until_said("repair: stored 4 trades of 1 symbol")
        assert producer.stop() == 0
    rows = "SELECT trade_id FROM prices_real_time WHERE symbol = 'SKL/USD' ORDER BY trade_id"
    assert [number for (number,) in pipeline.database.query(rows)] == ours


@pytest.mark.parametrize(("session", "count"), [("binance-spot", 2), ("binance-us", 11)])
def test_binance_sessions_are_stored_exactly(pipeline: Pipeline, session: str, count: int) -> None:
    texts = messages(session)
    trades = [data for data in (json.loads(text)["data"] for text in texts) if data.get("e") == "aggTrade"]
    assert len(trades) == count
    names = {trade["s"] for trade in trades}
    quotes = ("USDT", "BUSD", "ETH", "BTC", "EUR")
    symbols = {
        name: f"{name.removesuffix(quote)}/{quote}" for name in names for quote in quotes if name.endswith(quote)
    }
    with replayed(session) as exchange:
        rows = store_session(pipeline, "binance", exchange, sorted(symbols.values()), count)
    found = [(symbol, number(price), number(size), side, trade_id) for symbol, price, size, side, trade_id, *_ in rows]
    assert found == [
        (symbols[trade["s"]], number(trade["p"]), number(trade["q"]), "sell" if trade["m"] else "buy", trade["a"])
        for trade in trades
    ]
    milliseconds = pipeline.database.query(
        "SELECT (extract(epoch FROM time) * 1000)::bigint FROM prices_real_time ORDER BY seq"
    )
    assert [time for (time,) in milliseconds] == [trade["T"] for trade in trades]


def test_trades_that_binance_did_not_send_are_requested_by_number(pipeline: Pipeline) -> None:
    sent = [json.loads(text)["data"] for text in messages("binance-us")]
    ours = [data for data in sent if data.get("e") == "aggTrade"]
    dropped = {trade["a"] for trade in ours[1:4]}
    with replayed("binance-us", dropped) as exchange:
        store_session(pipeline, "binance", exchange, ["OMG/BUSD"], len(ours) - 3)
        (skipped,) = verdict(pipeline)["skipped"]
        assert (skipped["symbol"], skipped["first"], skipped["missing"]) == ("OMG/BUSD", min(dropped), 3)
        assert "stored 3 trades of 1 symbol" in backfill(pipeline, "binance", exchange.rest_url)
    assert verdict(pipeline)["skipped"] == []
    rows = pipeline.database.query(STORED.replace("ORDER BY seq", "ORDER BY trade_id"))
    assert [(number(price), number(size), side, trade_id) for _, price, size, side, trade_id, *_ in rows] == [
        (number(trade["p"]), number(trade["q"]), "sell" if trade["m"] else "buy", trade["a"]) for trade in ours
    ]
