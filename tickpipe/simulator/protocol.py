"""Twelve Data's websocket messages: requests of a client and their replies. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from typing import Any, NamedTuple

from tickpipe.simulator.random_walk import Event

#: Finds `symbol`, `exchange`, `mic_code`, `country` and `type` of a symbol; None for an unknown one.
FindInstrument = Callable[[str], Event | None]
#: Symbols, each with the exchange that the client named, or None.
Symbols = list[tuple[str, str | None]]

HEARTBEAT = {"event": "heartbeat", "status": "ok"}
RESET = {"event": "reset-status", "status": "ok"}


class ClientRequest(NamedTuple):
    """A message of a client. `symbols` is empty for `heartbeat` and `reset`."""

    action: str
    symbols: Symbols


def parse_request(message: str | bytes) -> ClientRequest:
    """Parse a client's message. Raises ValueError, RecursionError."""
    request = json.loads(message)
    request = request if isinstance(request, dict) else {}
    action = request.get("action")
    if action in ("subscribe", "unsubscribe"):
        return ClientRequest(action, _symbols(request.get("params")))
    if action in ("heartbeat", "reset"):
        return ClientRequest(action, [])
    raise ValueError(f"unknown action {action!r}")


def _symbols(params: Any) -> Symbols:
    """The symbols of {"symbols": "AAPL,RY:TSX"} and of {"symbols": [{"symbol": "AAPL"}, …]}. Raises ValueError."""
    symbols = params.get("symbols") if isinstance(params, dict) else None
    requested: list[tuple[Any, Any]] = []
    if isinstance(symbols, str):
        parts = [part.strip().partition(":") for part in symbols.split(",") if part.strip()]
        requested = [(symbol, exchange or None) for symbol, _, exchange in parts]
    elif isinstance(symbols, list) and all(isinstance(each, dict) for each in symbols):
        requested = [(each.get("symbol"), each.get("exchange") or each.get("mic_code") or None) for each in symbols]
    valid = [symbol and isinstance(symbol, str) and isinstance(exchange, str | None) for symbol, exchange in requested]
    if not valid or not all(valid):
        raise ValueError('expected "params": {"symbols": "AAPL,RY:TSX"} or {"symbols": [{"symbol": "AAPL"}]}')
    return requested


def subscribe(requested: Symbols, find: FindInstrument) -> tuple[Event, Symbols]:
    """The reply to a subscription, and the symbols to subscribe after the reply is sent."""
    success: list[Event] = []
    fails: list[Event] = []
    accepted: Symbols = []
    for symbol, exchange in requested:
        instrument = find(symbol)
        if instrument is None:
            fails.append({"symbol": symbol, "message": "symbol not found"})
        elif not is_listed_on(instrument, exchange):
            fails.append({"symbol": f"{symbol}:{exchange}", "message": f"symbol not found on {exchange}"})
        else:
            success.append(instrument)
            accepted.append((instrument["symbol"], exchange and (instrument["exchange"] or exchange)))
    return status_event("subscribe-status", success, fails), accepted


def unsubscribe(requested: Symbols, subscribed: Container[str], find: FindInstrument) -> tuple[Event, list[str]]:
    """The reply to the end of a subscription, and the symbols to remove."""
    success: list[Event] = []
    fails: list[Event] = []
    removed: list[str] = []
    for symbol, _ in requested:
        instrument = find(symbol)
        if instrument and instrument["symbol"] in subscribed and instrument["symbol"] not in removed:
            removed.append(instrument["symbol"])
            success.append(instrument)
        else:
            fails.append({"symbol": symbol, "message": "not subscribed"})
    return status_event("unsubscribe-status", success, fails), removed


def is_listed_on(instrument: Event, exchange: str | None) -> bool:
    """Whether `exchange` is the name or the code of the instrument's exchange. Forex has none and accepts any."""
    if exchange is None or not instrument["exchange"]:
        return True
    return exchange.upper() in (instrument["exchange"].upper(), instrument["mic_code"].upper())


def status_event(kind: str, success: list[Event], fails: list[Event]) -> Event:
    """A `subscribe-status` or `unsubscribe-status` event."""
    status = "ok" if not fails else "warning" if success else "error"
    return {"event": kind, "status": status, "success": success, "fails": fails or None}


def error_event(error: Exception) -> Event:
    """The reply to an invalid request."""
    return {"event": "error", "status": "error", "code": 400, "message": f"invalid request: {error}"}
