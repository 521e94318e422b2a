"""Kraken: the channel `trade` of version 2 of its websocket, and `/0/public/Trades`. Pure.

Source: Kraken's documentation "WebSocket v2, Trade" and "Get Recent Trades".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tickpipe.simulator.trades import Tape, Trade
from tickpipe.simulator.venues.venue import Reply, Subscriptions, Venue, count, from_iso, iso, texts

#: Trades in a snapshot, and in one answer at most.
SNAPSHOT, MAX_TRADES = 50, 1000
#: Kraken's own names of pairs in answers of the REST interface. The others are the name without the slash.
_PAIRS = {"BTC/USD": "XXBTZUSD", "ETH/USD": "XETHZUSD", "LTC/USD": "XLTCZUSD", "XRP/USD": "XXRPZUSD"}
_VERSION = {"version": "2.0.10", "system": "online", "api_version": "v2", "connection_id": 1}


class Kraken(Venue):
    """Symbols such as BTC/USD."""

    name, title, path = "kraken", "Kraken", "/v2"
    too_many: ClassVar[object] = {"error": ["EGeneral:Too many requests"]}

    def greeting(self) -> Sequence[str]:
        """See Venue."""
        return [json.dumps({"channel": "status", "type": "update", "data": [_VERSION]})]

    def answer(self, request: object, client: Subscriptions, tape: Tape, now: int) -> Sequence[str]:
        """See Venue. Each symbol gets an answer, and by default a snapshot."""
        fields = request if isinstance(request, dict) else {}
        method, params = fields.get("method"), fields.get("params")
        times = {"time_in": iso(now), "time_out": iso(now)}
        echo = {"req_id": fields["req_id"]} if isinstance(fields.get("req_id"), int) else {}
        if method == "ping":
            return [json.dumps({"method": "pong", **times, **echo})]
        params = params if isinstance(params, dict) else {}
        if method not in ("subscribe", "unsubscribe") or params.get("channel") != "trade":
            return [json.dumps({"error": "Malformed request", "method": "error", "success": False, **times, **echo})]
        answers = []
        for name in texts(params.get("symbol")):
            if name not in tape.names:
                error = {"error": f"Currency pair not supported {name}", "symbol": name, "success": False}
                answers.append(json.dumps({"method": method, **error, **times, **echo}))
                continue
            snapshot = method == "subscribe" and params.get("snapshot", True) is True
            result = {"channel": "trade", "snapshot": snapshot, "symbol": name}
            answers.append(json.dumps({"method": method, "result": result, "success": True, **times, **echo}))
            if snapshot:
                last = tape.last(name)
                answers.append(_message(tape.trades(name, last - SNAPSHOT + 1, last), "snapshot"))
            (client.trades.add if method == "subscribe" else client.trades.discard)(name)
        return answers

    def messages(self, trades: Sequence[Trade], now: int) -> Sequence[str]:  # noqa: ARG002
        """See Venue. Trades of the same moment are in one message."""
        return [_message(trades, "update")] if trades else ()

    def heartbeats(self, client: Subscriptions, tape: Tape, now: int) -> Sequence[str]:  # noqa: ARG002
        """See Venue. One after a second without another message, to a client with a subscription."""
        return ['{"channel":"heartbeat"}'] if client.trades and client.idle else ()

    def recorded(self, message: Mapping[str, Any]) -> Sequence[Trade]:
        """See Venue."""
        if message.get("channel") != "trade" or message.get("type") != "update":
            return ()
        return [
            Trade(
                each["symbol"], int(each["trade_id"]), str(each["price"]), str(each["qty"]), each["side"],
                from_iso(each["timestamp"]),
            )
            for each in message["data"]
        ]  # fmt: skip

    def rest(self, path: str, params: Mapping[str, str], tape: Tape) -> Reply | None:
        """See Venue. The oldest come first: those later than `since` (nanoseconds or seconds), or the newest of all."""
        if path != "/0/public/Trades":
            return None
        name = _by_pair(tape).get(params.get("pair", ""))
        if name is None:
            return 200, {"error": ["EQuery:Unknown asset pair"]}
        try:
            limit = count(params, "count", MAX_TRADES, MAX_TRADES)
            since = _microseconds(params["since"]) if "since" in params else None
        except ValueError:
            return 200, {"error": ["EGeneral:Invalid arguments"]}
        first = tape.last(name) - limit + 1 if since is None else tape.after(name, since)
        trades = tape.trades(name, first, first + limit - 1)
        last = f"{trades[-1].at}000" if trades else params.get("since", "0")
        return 200, {"error": [], "result": {_pair(name): [_row(trade) for trade in trades], "last": last}}


def _pair(name: str) -> str:
    return _PAIRS.get(name, name.replace("/", ""))


def _by_pair(tape: Tape) -> dict[str, str]:
    """Symbol by each spelling that Kraken accepts: XXBTZUSD, XBTUSD, BTCUSD, XBT/USD, BTC/USD."""
    return {
        spelling: name
        for name in tape.names
        for text in (name, name.replace("BTC", "XBT"))
        for spelling in (text, text.replace("/", ""), _pair(name))
    }


def _microseconds(since: str) -> int:
    """The time in a parameter. Later fractions of its microsecond do not count. Raises ValueError."""
    return int(since) // 1000 if len(since) > 12 else int(float(since) * 1e6)


def _row(trade: Trade) -> list[object]:
    return [trade.price, trade.size, trade.at / 1e6, trade.side[0], "ml"[trade.number % 2], "", trade.number]


def _message(trades: Sequence[Trade], kind: str) -> str:
    """Numbers are JSON numbers with all their digits, which json.dumps would round."""
    data = ",".join(
        f'{{"symbol":"{each.name}","side":"{each.side}","price":{each.price},"qty":{each.size},'
        f'"ord_type":"{("market", "limit")[each.number % 2]}","trade_id":{each.number},"timestamp":"{iso(each.at)}"}}'
        for each in trades
    )
    return f'{{"channel":"trade","type":"{kind}","data":[{data}]}}'
