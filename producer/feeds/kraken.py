"""Kraken, version 2 of its websocket: the channel `trade`, without a key. Pure.

Each book numbers its trades (`trade_id`). Source: Kraken's documentation "WebSocket v2, Trade" and "REST, Get Recent
Trades"; no recorded session of version 2 is in the tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from producer.feeds.vendor import Event, SubscribeStatus, TradeRange, Vendor, items, plain, seconds

#: Trades in one answer of the REST interface, at most.
MAX_TRADES = 1000


class Kraken(Vendor):
    """Symbols as Kraken spells them: BTC/USD."""

    name, title = "kraken", "Kraken"
    urls = ("wss://ws.kraken.com/v2",)
    exchange = "Kraken"
    rest_url = "https://api.kraken.com"
    by_time = True
    silence = 10.0  # a heartbeat about each second without another message
    answers_each = True

    def subscribe(self, names: Sequence[str]) -> str:
        """See Vendor. Without the snapshot: its trades may have been received before."""
        return _request("subscribe", {"symbol": list(names), "snapshot": False})

    def unsubscribe(self, names: Sequence[str]) -> str:
        """See Vendor."""
        return _request("unsubscribe", {"symbol": list(names)})

    def prices(self, message: Event, symbols: Mapping[str, str]) -> Sequence[Event]:
        """See Vendor. A message may have several trades."""
        if message.get("channel") != "trade" or message.get("type") != "update":
            return ()
        return [self._event(trade, symbols) for trade in items(message.get("data"))]

    def _event(self, trade: Event, symbols: Mapping[str, str]) -> Event:
        name = plain(trade.get("symbol"))
        return {
            "symbol": symbols.get(name, name), "timestamp": seconds(trade.get("timestamp")), "exchange": self.exchange,
            "price": trade.get("price"), "size": trade.get("qty"), "side": trade.get("side"),
            "trade_id": trade.get("trade_id"),
        }  # fmt: skip

    def trades_path(self, name: str, wanted: TradeRange) -> str:
        """See Vendor. The time is in nanoseconds, and the answer begins after it."""
        pair = quote(name.replace("/", ""), safe="")
        return f"/0/public/Trades?pair={pair}&since={int(wanted.since * 10**9) - 1}&count={MAX_TRADES}"

    def trades(self, answer: object, symbol: str) -> Sequence[Event]:
        """See Vendor. A trade is a list: price, volume, time, b or s, m or l, text, number."""
        result = answer.get("result") if isinstance(answer, dict) else None
        lists = [each for each in result.values() if isinstance(each, list)] if isinstance(result, dict) else []
        return [
            {
                "symbol": symbol, "exchange": self.exchange, "price": trade[0], "size": trade[1], "timestamp": trade[2],
                "side": {"b": "buy", "s": "sell"}.get(plain(trade[3])), "trade_id": trade[6],
            }
            for trades in lists for trade in trades if isinstance(trade, list) and len(trade) >= 7
        ]  # fmt: skip

    def refusal(self, answer: object) -> str:
        """See Vendor."""
        errors = answer.get("error") if isinstance(answer, dict) else None
        return ", ".join(map(plain, errors)) if isinstance(errors, list) else ""

    def answer(self, message: Event, symbols: Mapping[str, str]) -> SubscribeStatus | None:
        """See Vendor."""
        if message.get("method") != "subscribe":
            return None
        result = message.get("result")
        name = plain(result.get("symbol") if isinstance(result, dict) else message.get("symbol"))
        symbol = symbols.get(name, name)
        if message.get("success") is True:
            return SubscribeStatus((symbol,), {})
        reason = plain(message.get("error")) or "refused"
        return SubscribeStatus((), {symbol: reason} if symbol else {}, reason)

    def is_error(self, message: Event) -> bool:
        """See Vendor."""
        return message.get("success") is False


def _request(method: str, params: Mapping[str, object]) -> str:
    return json.dumps({"method": method, "params": {"channel": "trade", **params}})
