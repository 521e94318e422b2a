"""The simulator of each exchange, tested with the producer's reading of the same protocol over a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
import requests
import websocket

from common.errors import ConfigurationError
from common.tick import Tick, validation_error
from producer.feeds import VENDORS
from producer.feeds.vendor import SubscribeStatus, TradeRange, Vendor, decode, decode_frame
from tests.support.faults import FaultyExchange
from tests.support.recorded_venue import SESSIONS, messages
from tests.support.waiting import PATIENCE, wait_for
from tickpipe.simulator.config import ExchangeConfig
from tickpipe.simulator.exchange import ExchangeSimulator
from tickpipe.simulator.recording import Recording
from tickpipe.simulator.trades import Market, Trade
from tickpipe.simulator.venues import VENUES
from tickpipe.simulator.venues.venue import Subscriptions

FEEDS = ("coinbase", "kraken", "binance")
NOW = 1_800_000_000.25
each_feed = pytest.mark.parametrize("feed", FEEDS)


class Client:
    """Subscribes and reads messages as the producer does."""

    def __init__(self, url: str, feed: str, *symbols: str) -> None:
        self.vendor = VENDORS[feed]
        self.names = {self.vendor.spell(symbol): symbol for symbol in symbols}
        self.answers: list[SubscribeStatus] = []
        self.others: list[dict[str, Any]] = []
        self.socket = websocket.create_connection(url, timeout=PATIENCE)
        if symbols:
            self.socket.send(self.vendor.subscribe(list(self.names)))

    def receive(self) -> list[Tick]:
        """The trades in the next message. Other messages are kept."""
        message = decode_frame(self.socket.recv_data()[1])
        assert message is not None
        if (status := self.vendor.answer(message, self.names)) is not None:
            self.answers.append(status)
        elif not (prices := self.vendor.prices(message, self.names)):
            self.others.append(message)
        else:
            return [self.vendor.parse(event, 1, 1, 1) for event in prices]
        return []

    def trades(self, count: int) -> list[Tick]:
        found: list[Tick] = []
        while len(found) < count:
            found += self.receive()
        return found

    def until_closed(self) -> int:
        """Read until the server closes. Returns the code, or 1006 without a close frame."""
        with suppress(websocket.WebSocketConnectionClosedException, ConnectionError):
            while True:
                opcode, data = self.socket.recv_data()
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    return int.from_bytes(data[:2], "big")
                if opcode == websocket.ABNF.OPCODE_TEXT:
                    self.others.append(json.loads(data))
        return 1006


@contextmanager
def connected(simulator: ExchangeSimulator, feed: str, *symbols: str) -> Iterator[Client]:
    client = Client(simulator.url, feed, *symbols)
    try:
        yield client
    finally:
        client.socket.close(timeout=0.2)
        client.socket.shutdown()  # type: ignore[no-untyped-call] # close() omits it if the server closed first


def symbols_of(feed: str) -> tuple[str, str]:
    return ("BTC/USDT", "ETH/USDT") if feed == "binance" else ("BTC/USD", "ETH/USD")


def simulated(feed: str, **settings: Any) -> FaultyExchange:
    return FaultyExchange(ExchangeConfig(feed=feed, **{"rate": 200.0, "seed": 1, **settings}))


def venue_name(feed: str, symbol: str) -> str:
    """The spelling of the exchange's messages."""
    return VENDORS[feed].spell(symbol).upper() if feed == "binance" else VENDORS[feed].spell(symbol)


def as_sent(trade: Trade, feed: str) -> tuple[str, ...]:
    """Number, price, size, side and time of a trade as a tick has them. Binance has times in milliseconds."""
    at, digits = (str(trade.at // 1000), 3) if feed == "binance" else (str(trade.at), 6)
    return str(trade.number), trade.price, trade.size, trade.side, f"{at[:-digits]}.{at[-digits:]}"


def as_received(tick: Tick) -> tuple[str, ...]:
    return tick.trade_id, tick.price, tick.size, tick.side, tick.time


# --- Trades


@each_feed
def test_a_client_gets_each_trade_once_in_order(feed: str) -> None:
    symbol, other = symbols_of(feed)
    with simulated(feed) as simulator, connected(simulator, feed, symbol, other) as client:
        ticks = client.trades(300)
        assert client.answers
        assert {name for status in client.answers for name in status.accepted} == {symbol, other}
        for each in (symbol, other):
            ours = [tick for tick in ticks if tick.symbol == each]
            first, last = int(ours[0].trade_id), int(ours[-1].trade_id)
            trades = simulator.tape.trades(venue_name(feed, each), first, last)
            assert [as_received(tick) for tick in ours] == [as_sent(trade, feed) for trade in trades]
        assert all(validation_error(tick) is None for tick in ticks)


@each_feed
def test_trades_of_other_symbols_are_not_sent(feed: str) -> None:
    symbol, other = symbols_of(feed)
    with simulated(feed) as simulator, connected(simulator, feed, symbol) as client:
        assert {tick.symbol for tick in client.trades(20)} == {symbol}
        client.socket.send(client.vendor.subscribe([client.vendor.spell(other)]))
        client.names[client.vendor.spell(other)] = other
        wait_for(lambda: other in {tick.symbol for tick in client.trades(1)})
        client.socket.send(client.vendor.unsubscribe([client.vendor.spell(symbol)]))
        wait_for(lambda: symbol not in {tick.symbol for tick in client.trades(20)})


@each_feed
def test_trades_go_on_without_a_client(feed: str) -> None:
    symbol, _ = symbols_of(feed)
    with simulated(feed) as simulator:
        with connected(simulator, feed, symbol) as client:
            before = int(client.trades(5)[-1].trade_id)
        wait_for(lambda: simulator.tape.last(venue_name(feed, symbol)) > before + 20)
        with connected(simulator, feed, symbol) as client:
            assert int(client.trades(1)[0].trade_id) > before + 20


@each_feed
def test_trades_that_were_not_sent_are_requested_by_number(feed: str) -> None:
    """Kraken's by their time."""
    vendor, (symbol, _) = VENDORS[feed], symbols_of(feed)
    with FaultyExchange(ExchangeConfig(feed=feed, rate=200, drop=0.5, seed=3)) as simulator:
        with connected(simulator, feed, symbol) as client:
            numbers = [int(tick.trade_id) for tick in client.trades(60)]
        first, last = numbers[0], numbers[-1]
        assert last - first + 1 > len(numbers)
        expected = simulator.tape.trades(venue_name(feed, symbol), first, last)
        wanted = TradeRange(first, last, Decimal(expected[0].at) / 10**6)
        path = vendor.trades_path(vendor.spell(symbol), wanted)
        answer = decode(requests.get(simulator.rest_url + path, timeout=PATIENCE).content)
        assert vendor.refusal(answer) == ""
        ticks = [vendor.parse(event, 0, 0, 0) for event in vendor.trades(answer, symbol)]
        if vendor.newest_first:
            ticks.reverse()
        assert [(*as_received(tick)[:4], float(tick.time)) for tick in ticks][: len(expected)] == [
            (*as_sent(trade, feed)[:4], float(as_sent(trade, feed)[4])) for trade in expected
        ]


# --- The exchanges' own ways


def test_coinbase_refuses_an_unknown_product() -> None:
    with simulated("coinbase") as simulator, connected(simulator, "coinbase", "BTC/USD", "NO/SUCH") as client:
        assert client.receive() == []
        assert client.answers == [SubscribeStatus((), {}, "NO-SUCH is not a valid product")]


def test_coinbase_names_the_newest_trade_each_second() -> None:
    with (
        simulated("coinbase", rate=0.001) as simulator,
        connected(simulator, "coinbase", "BTC/USD", "ETH/USD") as client,
    ):
        wait_for(lambda: client.receive() == [] and len([x for x in client.others if x["type"] == "heartbeat"]) >= 4)
        match, other, *beats = client.others
        assert (match["type"], other["type"]) == ("last_match", "last_match")
        assert [beat["product_id"] for beat in beats] == ["BTC-USD", "ETH-USD"] * 2
        assert {beat["last_trade_id"] for beat in beats} == {match["trade_id"], other["trade_id"]}


def test_the_first_match_follows_the_last_one_before_the_subscription() -> None:
    with simulated("coinbase", rate=3000.0) as simulator:
        for _ in range(5):
            with connected(simulator, "coinbase", "BTC/USD") as client:
                first = int(client.trades(1)[0].trade_id)
                (last,) = [int(each["trade_id"]) for each in client.others if each["type"] == "last_match"]
                assert first == last + 1


def test_coinbase_answers_other_messages_with_an_error() -> None:
    tape, client = Market(VENUES["coinbase"].listings(), 1, 1, lambda: NOW), Subscriptions()
    wrong: list[object] = [
        None, [], {}, {"type": "subscribe"}, {"type": "subscribe", "product_ids": ["BTC-USD"]},
        {"type": "subscribe", "product_ids": ["BTC-USD"], "channels": ["level2"]},
        {"type": "subscribe", "product_ids": [1], "channels": ["matches"]},
    ]  # fmt: skip
    for request in wrong:
        (text,) = VENUES["coinbase"].answer(request, client, tape, 0)
        assert json.loads(text)["type"] == "error"
    assert client == Subscriptions()


def test_coinbase_has_the_newest_trades_first() -> None:
    venue = VENUES["coinbase"]
    tape = Market(venue.listings(), 1, 1, lambda: NOW)
    last = tape.last("BTC-USD")

    def numbers(**params: object) -> list[int]:
        reply = venue.rest("/products/BTC-USD/trades", {name: str(value) for name, value in params.items()}, tape)
        assert reply is not None
        status, rows = reply
        assert status == 200
        assert isinstance(rows, list)
        return [row["trade_id"] for row in rows]

    assert numbers(limit=3) == [last, last - 1, last - 2]
    assert numbers(limit=2, after=last - 5) == [last - 6, last - 7]
    assert numbers(before=last - 2) == [last, last - 1]
    assert numbers(after=last + 10, before=last) == []
    assert len(numbers(limit=9999)) == len(numbers()) == 1000
    assert venue.rest("/products/NO-SUCH/trades", {}, tape) == (404, {"message": "NotFound"})
    for params in ({"limit": "0"}, {"limit": "x"}, {"after": "x"}):
        assert (venue.rest("/products/BTC-USD/trades", params, tape) or (0, 0))[0] == 400
    assert venue.rest("/products/BTC-USD", {}, tape) is None


def test_kraken_answers_each_symbol() -> None:
    with simulated("kraken") as simulator, connected(simulator, "kraken", "BTC/USD", "NO/SUCH") as client:
        wait_for(lambda: client.receive() == [] and len(client.answers) == 2)
        assert client.others[0]["channel"] == "status"
        assert {status.accepted for status in client.answers} == {("BTC/USD",), ()}
        (refused,) = [status.refused for status in client.answers if status.refused]
        assert refused == {"NO/SUCH": "Currency pair not supported NO/SUCH"}


def test_kraken_sends_a_heartbeat_after_a_second_without_a_trade() -> None:
    with simulated("kraken", rate=0.001) as simulator, connected(simulator, "kraken", "BTC/USD") as client:
        wait_for(lambda: client.receive() == [] and {"channel": "heartbeat"} in client.others)
    with simulated("kraken", rate=50) as simulator, connected(simulator, "kraken", "BTC/USD") as client:
        client.trades(100)
        assert {"channel": "heartbeat"} not in client.others


def test_kraken_sends_a_snapshot_by_default() -> None:
    venue = VENUES["kraken"]
    tape, client = Market(venue.listings(), 1, 1, lambda: NOW), Subscriptions()
    params = {"channel": "trade", "symbol": ["BTC/USD"]}
    answer, snapshot = map(json.loads, venue.answer({"method": "subscribe", "params": params}, client, tape, 0))
    assert answer["result"]["snapshot"] is True
    assert (snapshot["type"], len(snapshot["data"])) == ("snapshot", 50)
    assert snapshot["data"][-1]["trade_id"] == tape.last("BTC/USD")
    (answer,) = map(json.loads, venue.answer({"method": "unsubscribe", "params": params}, client, tape, 0))
    assert (answer["method"], answer["success"]) == ("unsubscribe", True)
    assert client.trades == set()


def test_kraken_has_the_trades_after_a_time() -> None:
    venue = VENUES["kraken"]
    tape = Market(venue.listings(), 1, 1, lambda: NOW)
    last = tape.last("BTC/USD")
    trades = tape.trades("BTC/USD", last - 9, last)

    def result(**params: object) -> Any:
        reply = venue.rest("/0/public/Trades", {name: str(value) for name, value in params.items()}, tape)
        assert reply is not None
        return reply[1]

    def numbers(**params: object) -> list[int]:
        return [row[6] for row in result(pair="BTC/USD", **params)["result"]["XXBTZUSD"]]

    assert numbers(since=f"{trades[0].at}000") == [each.number for each in trades[1:]]
    assert numbers(since=trades[0].at * 1000 - 1, count=2) == [trades[0].number, trades[1].number]
    assert numbers(count=2) == [last - 1, last]
    seconds = trades[4].at // 1_000_000
    assert numbers(since=seconds) == [each.number for each in trades if each.at > seconds * 1_000_000]
    for pair in ("XXBTZUSD", "XBTUSD", "BTCUSD", "XBT/USD"):
        assert result(pair=pair, count=1)["result"]["last"] == f"{trades[-1].at}000"
    assert result(pair="SOLUSD", count=1)["result"].keys() == {"SOLUSD", "last"}
    nothing = result(pair="BTC/USD", since=f"{trades[-1].at}000")["result"]
    assert nothing == {"XXBTZUSD": [], "last": f"{trades[-1].at}000"}
    assert result(pair="NOSUCH") == {"error": ["EQuery:Unknown asset pair"]}
    assert result(pair="BTC/USD", since="x") == {"error": ["EGeneral:Invalid arguments"]}
    assert result(pair="BTC/USD", count="0") == {"error": ["EGeneral:Invalid arguments"]}


def test_kraken_has_the_trades_of_a_moment_in_one_message() -> None:
    venue = VENUES["kraken"]
    tape = Market(venue.listings(), 1, 1, lambda: NOW)
    last = tape.last("BTC/USD")
    trades = tape.trades("BTC/USD", last - 2, last)
    (text,) = venue.messages(trades, 0)
    message = json.loads(text)
    assert [each["trade_id"] for each in message["data"]] == [last - 2, last - 1, last]
    assert [each._replace(message="") for each in venue.parse(text)] == list(trades)
    assert venue.messages([], 0) == ()


def test_binance_accepts_an_unknown_symbol_and_sends_nothing_of_it() -> None:
    with simulated("binance") as simulator, connected(simulator, "binance", "BTC/USDT", "NO/SUCH") as client:
        assert {tick.symbol for tick in client.trades(30)} == {"BTC/USDT"}
        assert client.answers[0].accepted == ("BTC/USDT", "NO/SUCH")


def test_binance_numbers_single_trades_without_a_hole() -> None:
    venue = VENUES["binance"]
    tape = Market(venue.listings(), 1, 1, lambda: NOW)
    reply = venue.rest("/api/v3/aggTrades", {"symbol": "BTCUSDT", "limit": "100"}, tape)
    assert reply is not None
    rows: Any = reply[1]
    assert [row["a"] for row in rows] == list(range(tape.last("BTCUSDT") - 99, tape.last("BTCUSDT") + 1))
    assert all(later["f"] == earlier["l"] + 1 for earlier, later in pairwise(rows))
    assert all(row["f"] <= row["l"] for row in rows)
    first = rows[10]["a"]
    assert venue.rest("/api/v3/aggTrades", {"symbol": "BTCUSDT", "fromId": str(first), "limit": "5"}, tape) == (
        200, rows[10:15],
    )  # fmt: skip
    assert venue.rest("/api/v3/aggTrades", {"symbol": "NO"}, tape) == (400, {"code": -1121, "msg": "Invalid symbol."})
    assert (venue.rest("/api/v3/aggTrades", {"symbol": "BTCUSDT", "fromId": "x"}, tape) or (0, 0))[0] == 400


def test_binance_answers_a_request_that_it_does_not_know_with_an_error() -> None:
    for request in (None, 1, {}, {"method": "LIST", "id": 7}):
        tape = Market(VENUES["binance"].listings(), 1, 1, lambda: NOW)
        (text,) = VENUES["binance"].answer(request, Subscriptions(), tape, 0)
        assert "error" in json.loads(text)


@each_feed
@pytest.mark.parametrize("text", ["", "no JSON", "[" * 5000, "[1]", '{"params": 1, "method": "subscribe"}', "null"])
def test_a_malformed_message_is_answered_and_changes_nothing(feed: str, text: str) -> None:
    with simulated(feed) as simulator, connected(simulator, feed, symbols_of(feed)[0]) as client:
        client.socket.send(text)
        client.trades(10)

        def answered() -> bool:
            """An error to this message. The producer takes one of Coinbase for an answer to its subscription."""
            client.trades(1)
            return any(status.error for status in client.answers) or any("error" in each for each in client.others)

        wait_for(answered)


@each_feed
def test_a_recorded_message_gives_the_same_trade(feed: str) -> None:
    venue = VENUES[feed]
    tape = Market(venue.listings(), 5, 1, lambda: NOW)
    name = venue.spell("BTC/USD")
    for trade in tape.trades(name, tape.last(name) - 9, tape.last(name)):
        (text,) = venue.messages([trade], 0)
        (parsed,) = venue.parse(text)
        precise = trade if feed != "binance" else trade._replace(at=trade.at // 1000 * 1000)
        assert parsed == precise._replace(message=text)
    for other in (
        "",
        "null",
        "[]",
        "{}",
        '{"data": 1}',
        '{"data": {"e": "aggTrade"}}',
        '{"type": "match"}',
        "[" * 5000,
    ):
        assert not venue.parse(other)


# --- Recorded sessions


def replayed(session: str) -> ExchangeConfig:
    (path,) = SESSIONS.glob(f"{session}*")
    return ExchangeConfig(feed=session.partition("-")[0], replay=path, speed=0)


def test_a_recorded_session_is_sent_as_it_is() -> None:
    texts = messages("coinbase")
    names = {str(json.loads(text).get("product_id", "")) for text in texts} - {""}
    symbols = [name.replace("-", "/") for name in sorted(names)]
    with ExchangeSimulator(replayed("coinbase")) as simulator, connected(simulator, "coinbase", *symbols) as client:
        answer = json.loads(client.socket.recv())
        assert [len(channel["product_ids"]) for channel in answer["channels"]] == [10, 10]
        assert [client.socket.recv() for _ in texts] == texts
        assert simulator.wait(PATIENCE)
        vendor = VENDORS["coinbase"]
        path = vendor.trades_path("SKL-USD", TradeRange(0, 10**9, Decimal(0)))
        found = requests.get(simulator.rest_url + path, timeout=PATIENCE).json()
        assert [each["trade_id"] for each in found] == sorted({each["trade_id"] for each in found}, reverse=True)
        sent = [json.loads(text) for text in texts if '"product_id":"SKL-USD"' in text and '"ticker"' not in text]
        assert [(each["trade_id"], each["price"], each["time"]) for each in reversed(found)] == [
            (each["trade_id"], each["price"], each["time"]) for each in sent if "trade_id" in each
        ]


def test_a_heartbeat_before_the_first_recorded_trade_has_no_number() -> None:
    """The number before the first one may be older than the last match."""
    (path,) = SESSIONS.glob("coinbase*")
    venue = VENUES["coinbase"]
    tape, client = Recording(path, venue.parse), Subscriptions(heartbeats={"YFI-BTC"})

    def number() -> int:
        (text,) = venue.heartbeats(client, tape, 0)
        return int(json.loads(text)["last_trade_id"])

    assert number() == 0
    for message in tape.messages:
        tape.play(message)
    assert number() == 889760


def test_a_replay_sends_only_trades_of_subscribed_symbols() -> None:
    with ExchangeSimulator(replayed("coinbase")) as simulator, connected(simulator, "coinbase", "SKL/USD") as client:
        ticks = client.trades(5)
        assert {tick.symbol for tick in ticks} == {"SKL/USD"}


def test_dropped_trades_of_a_recording_can_be_requested() -> None:
    (path,) = SESSIONS.glob("binance-us*")
    trades = [each for message in Recording(path, VENUES["binance"].parse).messages for each in message.trades]
    dropped = trades[4]
    names = {trade.name for trade in trades}
    with (
        ExchangeSimulator(
            replayed("binance-us"), lambda each: [each] if each.number != dropped.number else []
        ) as simulator,
        connected(simulator, "binance", *names) as client,
    ):
        numbers = [int(tick.trade_id) for tick in client.trades(len(trades) - 1)]
        assert numbers == [trade.number for trade in trades if trade != dropped]
        path_ = f"/api/v3/aggTrades?symbol={dropped.name}&fromId={dropped.number}&limit=1"
        (found,) = requests.get(simulator.rest_url + path_, timeout=PATIENCE).json()
        assert (found["a"], found["p"], found["q"]) == (dropped.number, dropped.price, dropped.size)


# --- Faults


def test_connections_are_closed_after_a_time() -> None:
    with simulated("coinbase", close_after=0.2) as simulator, connected(simulator, "coinbase", "BTC/USD") as client:
        assert client.until_closed() == 1001


def test_binance_announces_that_it_closes() -> None:
    settings = {"close_after": 0.4, "shutdown_notice": 0.2, "rate": 20.0}
    with simulated("binance", **settings) as simulator, connected(simulator, "binance", "BTC/USDT") as client:
        assert client.until_closed() == 1001
        (place,) = [place for place, each in enumerate(client.others) if each.get("e") == "serverShutdown"]
        assert place > 0


def test_handshakes_are_refused_and_requests_are_not() -> None:
    with simulated("binance", refuse=451) as simulator:
        with pytest.raises(websocket.WebSocketBadStatusException, match="451"):
            Client(simulator.url, "binance")
        path = "/api/v3/aggTrades?symbol=BTCUSDT&limit=1"
        assert requests.get(simulator.rest_url + path, timeout=PATIENCE).status_code == 200


@each_feed
def test_requests_above_the_limit_are_refused(feed: str) -> None:
    now = [NOW]
    config = ExchangeConfig(feed=feed, requests_per_second=2)
    with FaultyExchange(config, clock=lambda: now[0]) as simulator:

        def status() -> int:
            return requests.get(f"{simulator.rest_url}/0/public/Trades?pair=XBTUSD", timeout=PATIENCE).status_code

        allowed = 200 if feed == "kraken" else 404
        assert [status() for _ in range(4)] == [allowed, allowed, 429, 429]
        now[0] += 1
        assert status() == allowed


def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickpipe.simulator.exchange.MAX_UNREAD", 50_000)
    with simulated("coinbase", rate=20_000.0) as simulator, connected(simulator, "coinbase", "BTC/USD") as client:
        client.trades(1)
        wait_for(lambda: simulator.open_connections == 0)


def test_a_failing_wire_closes_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Trade) -> list[Trade]:
        raise ValueError("odd")

    config = ExchangeConfig(feed="coinbase", rate=100)
    with ExchangeSimulator(config, fail) as simulator, connected(simulator, "coinbase", "BTC/USD") as client:
        assert client.until_closed() == 1011
    assert "the market or the wire failed" in caplog.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"drop": 1.5}, "--drop 1.5"),
        ({"repeat": -0.1}, "--repeat -0.1"),
        ({"drop": 0.6, "delay": 0.6}, "together 1 at most"),
        ({"refuse": 200}, "--refuse 200"),
        ({"shutdown_notice": 1.0, "close_after": 2.0}, "--shutdown-notice needs --feed binance"),
        ({"rate": 0}, "--rate 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ExchangeConfig(feed="coinbase", **settings)


def vendor_of(feed: str) -> Vendor:
    return VENDORS[feed]


@each_feed
def test_the_producer_connects_to_the_path_of_the_exchange(feed: str) -> None:
    assert any(url.rstrip("/").endswith(VENUES[feed].path.rstrip("/")) for url in vendor_of(feed).urls)
    assert VENUES[feed].title == vendor_of(feed).title
