"""Twelve Data's messages. Pure.

Price events have three shapes (stock, crypto, forex) with the fields `event symbol type timestamp price` in common.
Sources: the vendor's documentation of the websocket, and the transcripts in the TimescaleDB tutorial
"Ingest real-time financial websocket data".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from common.tick import Tick

Event = Mapping[str, Any]

#: Asks for a heartbeat event. The vendor recommends one about every 10 s.
HEARTBEAT = '{"action": "heartbeat"}'

#: Keeps numbers as the text that the vendor sent: nothing is rounded, and nothing is parsed twice.
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
#: Fields of a price event in the order of Tick, between its `seq` and its `received`.
_TICK_FIELDS = ("symbol", "timestamp", "price", "day_volume", "bid", "ask", "exchange")
#: Fields of a price event that describe the instrument.
_INSTRUMENT_FIELDS = ("symbol", "type", "exchange", "mic_code", "currency", "currency_base", "currency_quote")


def decode_frame(frame: bytes) -> dict[str, Any] | None:
    """The event in a websocket text frame, with numbers as text; None if the frame is not a JSON object."""
    try:
        text = frame.decode()
        try:
            event, end = _DECODER.raw_decode(text)
        except ValueError:
            end = -1
        if end != len(text):  # surrounding white space or invalid JSON; stripping every frame first would be slower
            event = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def parse(event: Event, session: int, seq: int, received: int) -> Tick:
    """The tick in a price event. Never fails: the database validates the values.

    `session` and `received` are microseconds since 1970; `seq` starts at 1.
    """
    texts = [value if type(value) is str else plain(value) for value in map(event.get, _TICK_FIELDS)]
    return Tick._make([str(session), str(seq), *texts, str(received)])


def plain(value: object) -> str:
    """A value of the vendor's JSON as text: a string as it is, "" for null, and JSON for any other type."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return json.dumps(value)
    except RecursionError:  # nested so deeply that it can be parsed, but not printed
        return ""


class SubscribeStatus(NamedTuple):
    """The server's answer to a subscription: accepted symbols, and refused symbols with the reason for each.

    `error` is the message if the server calls the whole answer an error, else "".
    """

    accepted: tuple[str, ...]
    refused: dict[str, str]
    error: str = ""


def subscribe_status(event: Event) -> SubscribeStatus:
    """Read a `subscribe-status` event. Its lists may be absent, null or of any other type."""
    accepted = tuple(_symbols(event.get("success")))
    refused = {symbol: plain(item.get("message")) or "refused" for symbol, item in _symbols(event.get("fails")).items()}
    message = plain(event.get("message") or event.get("messages")) or "refused"
    return SubscribeStatus(accepted, refused, message if event.get("status") == "error" else "")


def _symbols(items: object) -> dict[str, Event]:
    """Symbol → item, for a list of symbols or of objects with a `symbol`."""
    found: dict[str, Event] = {}
    for item in items if isinstance(items, list) else []:
        if isinstance(item, str):
            found[item] = {}
        elif isinstance(item, dict) and isinstance(item.get("symbol"), str):
            found[item["symbol"]] = item
    return found


def instrument(event: Event) -> dict[str, str]:
    """The fields of a price event that describe its instrument: symbol, type, exchange, mic_code and currencies."""
    return {name: plain(event[name]) for name in _INSTRUMENT_FIELDS if event.get(name)}
