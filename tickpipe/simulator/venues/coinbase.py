"""Coinbase Exchange: the channels `matches` and `heartbeat`, and `/products/NAME/trades`. Pure.

Source: Coinbase's documentation "Exchange WebSocket Channels" and "Get product trades", and recorded sessions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from uuid import UUID

from tickpipe.simulator.random_walk import Event
from tickpipe.simulator.trades import Tape, Trade
from tickpipe.simulator.venues.venue import Reply, Subscriptions, Venue, count, from_iso, iso, known, texts

#: The `side` of a match is that of the order that waited.
_SIDES = {"buy": "sell", "sell": "buy"}
#: Trades in one answer, at most.
MAX_TRADES = 1000


class Coinbase(Venue):
    """Symbols such as BTC-USD."""

    name, title = "coinbase", "Coinbase Exchange"
    too_many: ClassVar[object] = {"message": "Public rate limit exceeded"}

    def spell(self, symbol: str) -> str:
        """See Venue."""
        return symbol.replace("/", "-")

    def answer(self, request: object, client: Subscriptions, tape: Tape, now: int) -> Sequence[str]:  # noqa: ARG002
        """See Venue. One unknown product refuses the whole request."""
        fields = request if isinstance(request, dict) else {}
        kind, names, channels = fields.get("type"), texts(fields.get("product_ids")), texts(fields.get("channels"))
        if kind not in ("subscribe", "unsubscribe") or not names or not channels:
            return [_error("Failed to parse", "expected type, product_ids and channels")]
        if unknown := [name for name in names if name not in tape.names]:
            return [_error(f"Failed to {kind}", f"{unknown[0]} is not a valid product")]
        lists = {"matches": client.trades, "heartbeat": client.heartbeats}
        if others := [channel for channel in channels if channel not in lists]:
            return [_error(f"Failed to {kind}", f"{others[0]} is not a valid channel")]
        added = [name for name in names if name not in client.trades] if "matches" in channels else []
        for channel in channels:
            if kind == "subscribe":
                lists[channel].update(names)
            else:
                lists[channel].difference_update(names)
        listed = [{"name": name, "product_ids": sorted(found)} for name, found in lists.items() if found]
        answer = json.dumps({"type": "subscriptions", "channels": listed})
        return [answer, *(self._last_matches(added, tape) if kind == "subscribe" else ())]

    def _last_matches(self, names: Sequence[str], tape: Tape) -> list[str]:
        newest = [trade for name in names for trade in tape.trades(name, tape.last(name), tape.last(name))]
        return [json.dumps(_match(trade, "last_match")) for trade in newest]

    def message(self, trade: Trade, now: int) -> str:  # noqa: ARG002
        """See Venue."""
        return json.dumps(_match(trade, "match"))

    def heartbeats(self, client: Subscriptions, tape: Tape, now: int) -> Sequence[str]:
        """See Venue. Of each product: a client sees from `last_trade_id` that it has missed trades.

        The number is 0 before the first trade of a recording.
        """
        newest = [(name, tape.last(name)) for name in known(sorted(client.heartbeats), tape)]
        beats = [(name, last if tape.trades(name, last, last) else 0) for name, last in newest]
        return [
            json.dumps({
                "type": "heartbeat", "last_trade_id": last, "product_id": name, "sequence": _sequence(last) + 1,
                "time": iso(now),
            })
            for name, last in beats
        ]  # fmt: skip

    def recorded(self, message: Mapping[str, Any]) -> Sequence[Trade]:
        """See Venue. The last match before the subscription is a trade, too."""
        if message.get("type") not in ("match", "last_match"):
            return ()
        name, side, at = message["product_id"], _SIDES[message["side"]], from_iso(message["time"])
        return [Trade(name, int(message["trade_id"]), message["price"], message["size"], side, at)]

    def rest(self, path: str, params: Mapping[str, str], tape: Tape) -> Reply | None:
        """See Venue. The newest come first. `after` has older trades than this number, `before` newer ones."""
        root, _, rest = path.removeprefix("/").partition("/")
        name, _, last = rest.partition("/")
        if root != "products" or last != "trades":
            return None
        if name not in tape.names:
            return 404, {"message": "NotFound"}
        try:
            limit = count(params, "limit", MAX_TRADES, MAX_TRADES)
            newest = min(tape.last(name), int(params.get("after", tape.last(name) + 1)) - 1)
            oldest = max(int(params.get("before", 0)) + 1, newest - limit + 1)
        except ValueError as error:
            return 400, {"message": str(error)}
        return 200, [_rest_trade(trade) for trade in reversed(tape.trades(name, oldest, newest))]


def _sequence(number: int) -> int:
    """The number of the message with a trade: it counts the messages of other channels, too."""
    return number * 7


def _match(trade: Trade, kind: str) -> Event:
    order = trade.at << 64 | trade.number
    return {
        "type": kind, "trade_id": trade.number, "maker_order_id": str(UUID(int=order)),
        "taker_order_id": str(UUID(int=order + 1)), "side": _SIDES[trade.side], "size": trade.size,
        "price": trade.price, "product_id": trade.name, "sequence": _sequence(trade.number), "time": iso(trade.at),
    }  # fmt: skip


def _rest_trade(trade: Trade) -> Event:
    return {
        "trade_id": trade.number, "side": _SIDES[trade.side], "size": trade.size, "price": trade.price,
        "time": iso(trade.at),
    }  # fmt: skip


def _error(message: str, reason: str) -> str:
    return json.dumps({"type": "error", "message": message, "reason": reason})
