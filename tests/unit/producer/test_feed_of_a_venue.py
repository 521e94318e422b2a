"""The feed's loop with vendors that need no key. A third feed is one short class."""

from __future__ import annotations

import inspect
import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import pytest
import websocket
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection

from common import clock, threads
from common.settings import Secret
from producer.config import FeedConfig
from producer.connection import DisconnectedError, cause
from producer.feed import Feed, NothingSubscribedError
from producer.feeds import VENDORS
from producer.feeds.vendor import Event, SubscribeStatus, Vendor, items, plain
from producer.queue import EventQueue
from producer.session import PriceEvent
from producer.watchdog import Watchdog
from tests.support.recorded_venue import venue_server
from tests.support.waiting import PATIENCE, wait_for


class Bitstamp(Vendor):
    """Live trades: one message for each symbol, {"event": "trade", "channel": "live_trades_btcusd", "data": {…}}."""

    name, title = "bitstamp", "Bitstamp"
    urls: Sequence[str] = ("wss://ws.bitstamp.net",)

    def spell(self, symbol: str) -> str:
        """See Vendor."""
        return "live_trades_" + symbol.replace("/", "").lower()

    def subscribe(self, names: Sequence[str]) -> str:
        """See Vendor."""
        return json.dumps({"event": "bts:subscribe", "data": {"channel": names[0]}})

    def unsubscribe(self, names: Sequence[str]) -> str:
        """See Vendor."""
        return json.dumps({"event": "bts:unsubscribe", "data": {"channel": names[0]}})

    def prices(self, message: Event, symbols: Mapping[str, str]) -> Sequence[Event]:
        """See Vendor."""
        if message.get("event") != "trade":
            return ()
        name = plain(message.get("channel"))
        return [
            {
                "symbol": symbols.get(name, name), "exchange": self.title, "timestamp": trade.get("timestamp"),
                "price": trade.get("price_str"), "size": trade.get("amount_str"), "trade_id": trade.get("id"),
                "side": "sell" if trade.get("type") == "1" else "buy",
            }
            for trade in items([message.get("data")])
        ]  # fmt: skip

    def answer(self, message: Event, symbols: Mapping[str, str]) -> SubscribeStatus | None:
        """See Vendor."""
        name = plain(message.get("channel"))
        if message.get("event") == "bts:subscription_succeeded" and name in symbols:
            return SubscribeStatus((symbols[name],), {})
        return None


Answer = Callable[[str], list[dict[str, Any]]]


@contextmanager
def venue(answer: Answer, refuse: int | None = None) -> Iterator[str]:
    """A server that answers each message by these. `refuse`: the HTTP status of each handshake."""

    def handle(client: ServerConnection) -> None:
        for text in client:
            for message in answer(str(text)):
                client.send(json.dumps(message))

    def process(connection: ServerConnection, _: Request) -> Response | None:
        return connection.respond(HTTPStatus(refuse), "no") if refuse else None

    with venue_server(handle, process) as url:
        yield url


class Run:
    """A feed in a thread."""

    def __init__(self, vendor: Vendor, url: str | None, *symbols: str) -> None:
        self.queue = EventQueue(1000)
        self.stop = threading.Event()
        config = FeedConfig(vendor=vendor, url=url)
        self.feed = Feed(
            config, api_key=lambda: Secret(""), symbols=symbols, queues=[self.queue], clock=clock.microseconds,
            rng=random.Random(1),
        )  # fmt: skip
        self.ended = threads.in_thread(self.feed.run, self.stop)

    def end(self) -> list[Any]:
        """Stop it. Returns what is in the queue."""
        self.stop.set()
        self.ended.result(timeout=PATIENCE)
        return self.queue.take(timeout=0) or []


def test_third_feed_is_short_and_needs_nothing_else() -> None:
    assert len(inspect.getsource(Bitstamp).splitlines()) < 80
    trade = {"id": 1, "price_str": "100.10", "amount_str": "0.5", "timestamp": "1700000000", "type": 1}

    def answer(text: str) -> list[dict[str, Any]]:
        channel = json.loads(text)["data"]["channel"]
        return [
            {"event": "bts:subscription_succeeded", "channel": channel},
            {"event": "trade", "channel": channel, "data": trade},
        ]

    with venue(answer) as url:
        run = Run(Bitstamp(), url, "BTC/USD")
        wait_for(lambda: run.feed.received)
        prices = [item for item in run.end() if isinstance(item, PriceEvent)]
    (tick,) = [Bitstamp().parse(price.event, 1, price.seq, 2) for price in prices]
    assert tick == ("1", "1", "BTC/USD", "1700000000", "100.10", "", "", "", "Bitstamp", "2", "0.5", "sell", "1")


def refusing(*names: str) -> Answer:
    """As Kraken: an answer for each symbol."""

    def answer(text: str) -> list[dict[str, Any]]:
        return [
            {"method": "subscribe", "success": False, "symbol": name, "error": "Currency pair not supported"}
            if name in names
            else {"method": "subscribe", "success": True, "result": {"channel": "trade", "symbol": name}}
            for name in json.loads(text)["params"]["symbol"]
        ]

    return answer


def test_refused_symbol_does_not_end_the_others() -> None:
    with venue(refusing("A/USD", "B/USD")) as url:
        run = Run(VENDORS["kraken"], url, "A/USD", "B/USD", "BTC/USD")
        wait_for(lambda: run.feed._subscription.accepted)
        kinds = [(item.event, json.loads(item.detail).get("symbols")) for item in run.end()]
    assert ("refused", {"A/USD": "Currency pair not supported"}) in kinds
    assert ("subscribed", ["BTC/USD"]) in kinds


def test_feed_ends_if_each_symbol_is_refused() -> None:
    with venue(refusing("A/USD", "B/USD")) as url:
        run = Run(VENDORS["kraken"], url, "A/USD", "B/USD")
        with pytest.raises(NothingSubscribedError, match="B/USD"):
            run.ended.result(timeout=PATIENCE)


def test_second_address_is_used_if_the_first_refuses(caplog: pytest.LogCaptureFixture) -> None:
    with venue(lambda _: [], refuse=451) as first, venue(lambda _: []) as second:
        vendor = Bitstamp()
        vendor.urls = (first, second)
        run = Run(vendor, None, "BTC/USD")
        wait_for(lambda: run.feed.connected)
        run.end()
    assert "refuses connections from your region (HTTP status 451)" in caplog.text


def test_named_address_is_the_only_one() -> None:
    assert FeedConfig(vendor=VENDORS["binance"], url="ws://localhost:1").urls == ("ws://localhost:1",)
    assert len(FeedConfig(vendor=VENDORS["binance"]).urls) == 2


def test_silence_of_a_server_that_sends_heartbeats_is_a_dead_feed() -> None:
    watchdog = Watchdog(FeedConfig(vendor=VENDORS["coinbase"]), 100.0)
    watchdog.frame_at = 110.5  # a pong
    watchdog.check(110.0)
    with pytest.raises(DisconnectedError, match="no heartbeat"):
        watchdog.check(110.5)


def test_unknown_name_of_a_server_is_explained() -> None:
    error = websocket.WebSocketAddressException("[Errno -2] Name or service not known")
    assert cause(error) == (
        "the name of the server is unknown ([Errno -2] Name or service not known): is this machine online, and does "
        "its DNS work?"
    )
