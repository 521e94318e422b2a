"""An exchange misbehaves. The producer goes on; missing trades are recorded and can be repaired."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from tests.support.faults import FaultyExchange
from tests.support.pipeline import Pipeline
from tests.support.processes import Running
from tests.support.recorded_venue import SESSIONS, messages
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.simulator.config import ExchangeConfig
from tickpipe.simulator.misbehaviour import Wire
from tickpipe.simulator.trades import Market, Tape, Trade
from tickpipe.simulator.venues import VENUES

(SESSION,) = SESSIONS.glob("coinbase*")
SKL = "SKL/USD"
ROWS = """
SELECT trade_id, price::text, size::text, side, (extract(epoch FROM time) * 1000000)::bigint
FROM prices_real_time WHERE symbol = %s ORDER BY trade_id
"""


def recorded(wire: Wire) -> FaultyExchange:
    return FaultyExchange(ExchangeConfig(feed="coinbase", replay=SESSION, speed=0), wire)


def start(pipeline: Pipeline, feed: str, url: str, *symbols: str) -> Running:
    pipeline.consumer()
    return pipeline.processes.start(
        "producer", "--feed", feed, "--url", url, "--symbols", ",".join(symbols), SPOOL_DIR=str(pipeline.folder)
    )


def stop(pipeline: Pipeline, producer: Running) -> None:
    """Stop it, and wait until everything is stored."""
    assert producer.stop() == 0
    wait_for(pipeline.last_seqs)


def backfill(pipeline: Pipeline, feed: str, url: str) -> str:
    command = pipeline.processes.start("tickpipe", "backfill", "--feed", feed, "--rest-url", url)
    assert command.wait() == 0, command.said()
    return command.said()


def skipped(pipeline: Pipeline) -> list[dict[str, Any]]:
    """The trades that `verify` names as missing."""
    verify = pipeline.processes.start("tickpipe", "verify", "--all", "--json", "--claim-idle", "0.5")
    assert verify.wait() == 0, verify.said()
    return [each for found in verify.json() for each in found["skipped"]]


def is_dropped(pipeline: Pipeline, symbol: str) -> bool:
    """Whether a trade is missing, although ten later ones are stored: it is not late."""
    found = numbers(pipeline, symbol)
    return any(later > earlier + 1 for earlier, later in pairwise(found[:-10]))


def numbers(pipeline: Pipeline, symbol: str) -> list[int]:
    return [row[0] for row in pipeline.database.query(ROWS, symbol)]


def assert_stored_once(pipeline: Pipeline, tape: Tape, feed: str, symbol: str) -> None:
    """Each trade between the first and the last that is stored is stored exactly once, with all its digits."""
    rows = pipeline.database.query(ROWS, symbol)
    name = VENUES[feed].spell(symbol) if feed != "binance" else symbol.replace("/", "")
    precision = 1000 if feed == "binance" else 1
    assert [(row[0], Decimal(row[1]), Decimal(row[2]), row[3], row[4]) for row in rows] == [
        (each.number, Decimal(each.price), Decimal(each.size), each.side, each.at // precision * precision)
        for each in tape.trades(name, rows[0][0], rows[-1][0])
    ]


def test_trades_that_arrive_late_are_missing_no_longer(pipeline: Pipeline) -> None:
    """Each second trade comes after the next one. The jump is recorded; the late trade is found by its number."""
    held: dict[str, Trade] = {}
    ours = [json.loads(text) for text in messages("coinbase")]
    final = max(each["trade_id"] for each in ours if each["type"] == "match" and each["product_id"] == "SKL-USD")

    def wire(trade: Trade) -> Sequence[Trade]:
        if (late := held.pop(trade.name, None)) is not None:
            return trade, late
        if trade.number % 2 and trade.number != final:
            held[trade.name] = trade
            return ()
        return (trade,)

    with recorded(wire) as exchange:
        producer = start(pipeline, "coinbase", exchange.url, SKL)
        assert exchange.wait(PATIENCE)
        sent = [each.number for each in exchange.tape.trades("SKL-USD", 0, 10**9)]
        pipeline.wait_until_stored(len(sent) - 2)
        stop(pipeline, producer)
        found = numbers(pipeline, SKL)
        assert found == list(range(found[0], found[-1] + 1))
        assert pipeline.feed_events("skipped")
        assert skipped(pipeline) == []
        assert "stored 0 trades" in backfill(pipeline, "coinbase", exchange.rest_url)


def test_repeated_trades_are_stored_once(pipeline: Pipeline) -> None:
    with recorded(lambda trade: (trade, trade)) as exchange:
        producer = start(pipeline, "coinbase", exchange.url, SKL)
        assert exchange.wait(PATIENCE)
        last = exchange.tape.last("SKL-USD")
        wait_for(lambda: last in numbers(pipeline, SKL))
        stop(pipeline, producer)
        found = numbers(pipeline, SKL)
        assert found == sorted(set(found))
        assert pipeline.feed_events("skipped") == []
        assert skipped(pipeline) == []


@pytest.mark.parametrize(("feed", "symbol"), [("coinbase", "BTC/USD"), ("kraken", "BTC/USD"), ("binance", "BTC/USDT")])
def test_trades_during_a_reconnect_are_repaired(pipeline: Pipeline, feed: str, symbol: str) -> None:
    """The exchange closes each connection after a time, as Binance does after 24 hours, with its announcement."""
    notice = 0.2 if feed == "binance" else None
    config = ExchangeConfig(feed=feed, rate=30, close_after=1.5, shutdown_notice=notice, seed=2)
    with FaultyExchange(config) as exchange:
        producer = start(pipeline, feed, exchange.url, symbol)
        wait_for(lambda: exchange.connections >= 3 and len(pipeline.feed_events("disconnected")) >= 2)
        count = pipeline.database.count()
        pipeline.wait_until_stored(count + 10)
        stop(pipeline, producer)
        closes = [detail["cause"] for detail in pipeline.feed_events("disconnected")]
        assert set(closes) == {"the server closed the connection (code 1001)"}
        missing = skipped(pipeline)
        assert missing, "they were made while no connection was open"
        total = sum(each["missing"] for each in missing)
        assert f"stored {total} trades of 1 symbol" in backfill(pipeline, feed, exchange.rest_url)
        assert skipped(pipeline) == []
        assert_stored_once(pipeline, exchange.tape, feed, symbol)


def test_trades_during_an_outage_are_repaired_after_refused_requests(pipeline: Pipeline) -> None:
    """The exchange sends nothing for a while on an open connection, then refuses requests above its limit."""
    busy = (429, {"message": "Public rate limit exceeded"})
    with FaultyExchange(ExchangeConfig(feed="coinbase", rate=400, seed=4)) as exchange:
        producer = start(pipeline, "coinbase", exchange.url, "BTC/USD", "ETH/USD")
        wait_for(lambda: len(set(numbers(pipeline, "BTC/USD"))) > 10 and numbers(pipeline, "ETH/USD"))
        exchange.quiet(on=True)
        last = exchange.tape.last("BTC-USD")
        wait_for(lambda: exchange.tape.last("BTC-USD") > last + 1500, message="more than one answer's trades")
        exchange.quiet(on=False)
        wait_for(lambda: numbers(pipeline, "BTC/USD")[-1] > last + 1500 and pipeline.feed_events("skipped"))
        stop(pipeline, producer)
        exchange.answer_calls(busy, busy)
        said = backfill(pipeline, "coinbase", exchange.rest_url)
        assert said.count("says 429: too many requests") == 2
        assert len(exchange.calls) >= 2 + 4, "two answers a symbol"
        assert skipped(pipeline) == []
        assert_stored_once(pipeline, exchange.tape, "coinbase", "BTC/USD")
        assert_stored_once(pipeline, exchange.tape, "coinbase", "ETH/USD")


def test_a_refused_region_is_named_until_the_exchange_accepts_again(pipeline: Pipeline) -> None:
    with FaultyExchange(ExchangeConfig(feed="binance", rate=100)) as exchange:
        exchange.refuse_handshakes(451)
        producer = start(pipeline, "binance", exchange.url, "BTC/USDT")
        producer.wait_until_said("127.0.0.1 refuses connections from your region (HTTP status 451); next try in")
        assert "Traceback" not in producer.said()
        exchange.refuse_handshakes(None)
        pipeline.wait_until_stored(1)
        stop(pipeline, producer)


#: What `tickpipe simulate` prints: the two commands to connect.
HINT = re.compile(r"Connect with: (producer [^;]+); (tickpipe backfill [^;]+?)\. Press")


def ran_simulator(pipeline: Pipeline, *options: str) -> tuple[list[str], list[str]]:
    """Start `tickpipe simulate`. Returns the commands that it prints."""
    simulator = pipeline.processes.start("tickpipe", "simulate", "--port", "0", *options)
    simulator.wait_until_said("Press Ctrl-C to stop")
    found = HINT.search(simulator.said())
    assert found, simulator.said()
    return shlex.split(found[1]), shlex.split(found[2])


@pytest.mark.parametrize(
    ("feed", "symbols"),
    [("coinbase", ("BTC/USD", "ETH/USD")), ("binance", ("BTC/USDT", "ETH/USDT"))],
)
def test_the_simulator_prints_how_to_connect(pipeline: Pipeline, feed: str, symbols: tuple[str, str]) -> None:
    """The command misbehaves. The database then has the trades of the seed."""
    producing, filling = ran_simulator(
        pipeline, "--feed", feed, "--rate", "20", "--seed", "5", "--drop", "0.05", "--delay", "0.1"
    )
    pipeline.consumer()
    producer = pipeline.processes.start(*producing, "--symbols", ",".join(symbols), SPOOL_DIR=str(pipeline.folder))
    wait_for(lambda: all(is_dropped(pipeline, symbol) for symbol in symbols))
    stop(pipeline, producer)
    tape = Market(VENUES[feed].listings(), 20, 5, time.time)
    for symbol in symbols:
        found = numbers(pipeline, symbol)
        assert len(found) == len(set(found)) < found[-1] - found[0] + 1
    assert skipped(pipeline)
    command = pipeline.processes.start(*filling)
    assert command.wait() == 0, command.said()
    for symbol in symbols:
        assert_stored_once(pipeline, tape, feed, symbol)


def test_a_recorded_session_is_replayed_by_the_command(pipeline: Pipeline) -> None:
    """After the replay, requests for its trades are still answered."""
    producing, filling = ran_simulator(
        pipeline, "--feed", "coinbase", "--replay", str(SESSION), "--speed", "0", "--drop", "0.2", "--seed", "1"
    )
    trades = [json.loads(line.partition(": ")[2]) for line in SESSION.read_text().splitlines() if '"match"' in line]
    sent = [trade["trade_id"] for trade in trades if trade["product_id"] == "SKL-USD"]
    pipeline.consumer()
    producer = pipeline.processes.start(*producing, "--symbols", SKL, SPOOL_DIR=str(pipeline.folder))
    wait_for(lambda: numbers(pipeline, SKL) and numbers(pipeline, SKL)[-1] >= sent[-3])
    stop(pipeline, producer)
    first, *_, last = numbers(pipeline, SKL)
    command = pipeline.processes.start(*filling)
    assert command.wait() == 0, command.said()
    assert numbers(pipeline, SKL) == [number for number in sent if first <= number <= last]
