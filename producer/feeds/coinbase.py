"""Coinbase Exchange: the channels `matches` and `heartbeat`, without a key. Pure.

Each product numbers its trades without a hole (`trade_id`). Source: Coinbase's documentation "Exchange WebSocket
Channels", and recorded sessions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from producer.feeds.vendor import Event, SubscribeStatus, TradeRange, Vendor, items, plain, seconds

#: Trades in one answer of the REST interface, at most.
MAX_TRADES = 1000
#: The `side` of a match is that of the order that waited. `Tick.side` is that of the order that caused the trade.
_SIDES = {"buy": "sell", "sell": "buy"}


class Coinbase(Vendor):
    """Symbols such as BTC/USD, in Coinbase's spelling BTC-USD."""

    name, title = "coinbase", "Coinbase Exchange"
    urls = ("wss://ws-feed.exchange.coinbase.com",)
    exchange = "Coinbase"
    rest_url = "https://api.exchange.coinbase.com"
    requests_per_second = 8
    newest_first = True
    silence = 10.0  # a heartbeat each second for each product

    def spell(self, symbol: str) -> str:
        """See Vendor."""
        return symbol.replace("/", "-")

    def subscribe(self, names: Sequence[str]) -> str:
        """See Vendor."""
        return _request("subscribe", names)

    def unsubscribe(self, names: Sequence[str]) -> str:
        """See Vendor."""
        return _request("unsubscribe", names)

    def prices(self, message: Event, symbols: Mapping[str, str]) -> Sequence[Event]:
        """See Vendor. The trade before the subscription (`last_match`) is not one of them."""
        if message.get("type") != "match":
            return ()
        name = plain(message.get("product_id"))
        return (self._event(message, symbols.get(name, name)),)

    def _event(self, trade: Event, symbol: str) -> Event:
        side = plain(trade.get("side"))
        event = {
            "symbol": symbol, "timestamp": seconds(trade.get("time")), "exchange": self.exchange,
            "side": _SIDES.get(side, side),
        }  # fmt: skip
        return {**event, **{key: trade.get(key) for key in ("price", "size", "trade_id")}}

    def last_trade(self, message: Event, symbols: Mapping[str, str]) -> Event | None:
        """See Vendor. A heartbeat, or the trade before the subscription, which a producer may have received before."""
        name, kind = plain(message.get("product_id")), message.get("type")
        if kind not in ("heartbeat", "last_match") or name not in symbols:
            return None
        number = message.get("last_trade_id" if kind == "heartbeat" else "trade_id")
        return {
            "symbol": symbols[name], "exchange": self.exchange, "trade_id": number,
            "timestamp": seconds(message.get("time")),
        }  # fmt: skip

    def trades_path(self, name: str, wanted: TradeRange) -> str:
        """See Vendor. The newest come first."""
        count = min(MAX_TRADES, wanted.size)
        return f"/products/{quote(name, safe='')}/trades?after={wanted.last + 1}&limit={count}"

    def trades(self, answer: object, symbol: str) -> Sequence[Event]:
        """See Vendor."""
        return [self._event(trade, symbol) for trade in items(answer)]

    def answer(self, message: Event, symbols: Mapping[str, str]) -> SubscribeStatus | None:
        """See Vendor. The server lists all subscriptions of the connection after each change."""
        if message.get("type") == "error":
            reason = plain(message.get("reason")) or plain(message.get("message"))
            return SubscribeStatus((), {}, reason or "refused")
        if message.get("type") != "subscriptions":
            return None
        channels = [each for each in items(message.get("channels")) if each.get("name") == "matches"]
        names = [name for each in channels for name in _texts(each.get("product_ids"))]
        return SubscribeStatus(tuple(symbols[name] for name in names if name in symbols), {})


def _request(kind: str, names: Sequence[str]) -> str:
    return json.dumps({"type": kind, "product_ids": list(names), "channels": ["matches", "heartbeat"]})


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
