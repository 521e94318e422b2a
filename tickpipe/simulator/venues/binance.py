"""Binance spot: combined streams of aggregated trades, and `/api/v3/aggTrades`. Pure.

Source: Binance's documentation "Spot API, WebSocket Streams" and "Market data endpoints", and recorded sessions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tickpipe.simulator.random_walk import Event
from tickpipe.simulator.trades import Tape, Trade
from tickpipe.simulator.venues.venue import Reply, Subscriptions, Venue, count, texts

CHANNEL = "@aggTrade"
#: Trades in one answer: by default, and at most.
DEFAULT_TRADES, MAX_TRADES = 500, 1000
#: Trades of single orders, for each five aggregated ones.
SINGLE_TRADES = 8


class Binance(Venue):
    """Symbols such as BTCUSDT, in the names of streams btcusdt."""

    name, title, path = "binance", "Binance", "/stream"
    too_many: ClassVar[object] = {
        "code": -1003,
        "msg": "Too much request weight used.",
    }

    def spell(self, symbol: str) -> str:
        """See Venue. Prices are in USDT."""
        return symbol.replace("/USD", "USDT").replace("/", "")

    def answer(self, request: object, client: Subscriptions, tape: Tape, now: int) -> Sequence[str]:  # noqa: ARG002
        """See Venue. Any name is accepted, also an unknown one."""
        fields = request if isinstance(request, dict) else {}
        method, streams = fields.get("method"), texts(fields.get("params"))
        names = {stream.removesuffix(CHANNEL).upper() for stream in streams if stream.endswith(CHANNEL)}
        if method == "SUBSCRIBE":
            client.trades |= names
        elif method == "UNSUBSCRIBE":
            client.trades -= names
        else:
            error = {"code": 2, "msg": f"Invalid request: unknown variant {method!r}, expected SUBSCRIBE"}
            return [json.dumps({"error": error, "id": fields.get("id")})]
        return [json.dumps({"result": None, "id": fields.get("id")})]

    def message(self, trade: Trade, now: int) -> str:
        """See Venue."""
        event = {"e": "aggTrade", "E": now // 1000, "s": trade.name, **_fields(trade)}
        return json.dumps({"stream": f"{trade.name.lower()}{CHANNEL}", "data": event})

    def heartbeats(self, client: Subscriptions, tape: Tape, now: int) -> Sequence[str]:  # noqa: ARG002
        """See Venue. Binance has none."""
        return ()

    def farewell(self, now: int) -> str | None:
        """See Venue."""
        return json.dumps({"e": "serverShutdown", "E": now // 1000})

    def recorded(self, message: Mapping[str, Any]) -> Sequence[Trade]:
        """See Venue."""
        data = message["data"]
        if data.get("e") != "aggTrade":
            return ()
        side = "sell" if data["m"] else "buy"
        return [Trade(data["s"], int(data["a"]), data["p"], data["q"], side, int(data["T"]) * 1000)]

    def rest(self, path: str, params: Mapping[str, str], tape: Tape) -> Reply | None:
        """See Venue. The oldest come first: from `fromId` on, or else the newest of all."""
        if path != "/api/v3/aggTrades":
            return None
        name = params.get("symbol", "")
        if name not in tape.names:
            return 400, {"code": -1121, "msg": "Invalid symbol."}
        try:
            limit = count(params, "limit", DEFAULT_TRADES, MAX_TRADES)
            first = int(params.get("fromId", tape.last(name) - limit + 1))
        except ValueError:
            return 400, {"code": -1100, "msg": "Illegal characters found in a parameter."}
        return 200, [_fields(trade) for trade in tape.trades(name, first, first + limit - 1)]


def _fields(trade: Trade) -> Event:
    """`f` and `l` are the first and the last trade of a single order: they have no hole, either."""
    first, following = (number * SINGLE_TRADES // 5 for number in (trade.number, trade.number + 1))
    return {
        "a": trade.number, "p": trade.price, "q": trade.size, "f": first, "l": following - 1, "T": trade.at // 1000,
        "m": trade.side == "sell", "M": True,
    }  # fmt: skip
