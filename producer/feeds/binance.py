"""Binance spot: aggregated trades, without a key. Pure.

An aggregated trade is what one order has traded at one price. Each symbol numbers them without a hole (`a`). Source:
Binance's documentation "Spot API, WebSocket Streams", and recorded sessions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from producer.feeds.vendor import Event, SubscribeStatus, TradeRange, Vendor, items, plain

#: Trades in one answer of the REST interface, at most.
MAX_TRADES = 1000
_SUBSCRIBE, _UNSUBSCRIBE = 1, 2  # ids of our requests


class Binance(Vendor):
    """Symbols such as BTC/USDT, in Binance's spelling btcusdt."""

    name, title = "binance", "Binance"
    urls = ("wss://stream.binance.com:9443/stream", "wss://data-stream.binance.vision/stream")
    exchange = "Binance"
    rest_url = "https://data-api.binance.vision"
    requests_per_second = 10
    max_symbols = 1024
    trial_symbols = Vendor.trial_symbols.replace("/USD", "/USDT")

    def spell(self, symbol: str) -> str:
        """See Vendor."""
        return symbol.replace("/", "").lower()

    def subscribe(self, names: Sequence[str]) -> str:
        """See Vendor."""
        return _request("SUBSCRIBE", names, _SUBSCRIBE)

    def unsubscribe(self, names: Sequence[str]) -> str:
        """See Vendor."""
        return _request("UNSUBSCRIBE", names, _UNSUBSCRIBE)

    def prices(self, message: Event, symbols: Mapping[str, str]) -> Sequence[Event]:
        """See Vendor."""
        data = message.get("data")
        if not isinstance(data, dict) or data.get("e") != "aggTrade":
            return ()
        name = plain(data.get("s"))
        return (self._event(data, symbols.get(name.lower(), name)),)

    def _event(self, trade: Event, symbol: str) -> Event:
        milliseconds = plain(trade.get("T"))
        return {
            "symbol": symbol, "exchange": self.exchange, "price": trade.get("p"), "size": trade.get("q"),
            "timestamp": f"{milliseconds[:-3]}.{milliseconds[-3:]}" if milliseconds.isdecimal() else milliseconds,
            "trade_id": trade.get("a"), "side": "sell" if trade.get("m") is True else "buy",
        }  # fmt: skip

    def trades_path(self, name: str, wanted: TradeRange) -> str:
        """See Vendor."""
        count = min(MAX_TRADES, wanted.size)
        return f"/api/v3/aggTrades?symbol={quote(name.upper(), safe='')}&fromId={wanted.first}&limit={count}"

    def trades(self, answer: object, symbol: str) -> Sequence[Event]:
        """See Vendor."""
        return [self._event(trade, symbol) for trade in items(answer)]

    def answer(self, message: Event, symbols: Mapping[str, str]) -> SubscribeStatus | None:
        """See Vendor. Binance accepts any name, and never sends a price of one that it does not have."""
        if message.get("id") != str(_SUBSCRIBE):
            return None
        if (error := message.get("error")) is None:
            return SubscribeStatus(tuple(symbols.values()), {})
        return SubscribeStatus((), {}, plain(error.get("msg") if isinstance(error, dict) else error) or "refused")

    def is_error(self, message: Event) -> bool:
        """See Vendor."""
        return "error" in message


def _request(method: str, names: Sequence[str], number: int) -> str:
    return json.dumps({"method": method, "params": [f"{name}@aggTrade" for name in names], "id": number})
