"""Twelve Data's JSON → ticks and words about the feed. Pure.

Price events come in three shapes (stock, crypto, forex) with the fields `event symbol type timestamp price` in common.
Source: the tutorial's transcripts and the events of the vendor's own documentation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from common.tick import Tick

Event = Mapping[str, Any]

#: Numbers stay the text that the vendor sent: nothing is rounded on the way, and nothing is parsed twice.
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)


def decode_frame(frame: bytes) -> dict[str, Any] | None:
    """The event in a websocket text frame, its numbers as text; None where the frame is no JSON object."""
    try:
        text = frame.decode()
        try:
            event, end = _DECODER.raw_decode(text)
        except ValueError:
            end = -1
        if end != len(text):  # white space around it, or no JSON; to look for that first takes its time
            event = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


#: The fields of a price event that a tick has between its numbers and the time it was received.
_TICK_FIELDS = ("symbol", "timestamp", "price", "day_volume", "bid", "ask", "exchange")


def parse(event: Event, session: int, seq: int, received: int) -> Tick:
    """The tick in a price event. Never fails: what is odd travels on as text, for the database to judge.

    `session` and `received` in microseconds since 1970, `seq` from 1.
    """
    return Tick._make([str(session), str(seq), *_texts(event, _TICK_FIELDS), str(received)])


def _texts(event: Event, names: tuple[str, ...]) -> list[str]:
    return [value if type(value) is str else plain(value) for value in map(event.get, names)]


def plain(value: object) -> str:
    """A value of the vendor's JSON as text; its JSON where it is no text; "" for none, and beyond all bounds."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return json.dumps(value)
    except RecursionError:  # nested just so deep that it could be read: no value of ours
        return ""


class SubscribeStatus(NamedTuple):
    """What the server said to a subscription: names it took, and names it refused with its reason for each.

    `error`: its words where it calls the whole an error, else "".
    """

    accepted: tuple[str, ...]
    refused: dict[str, str]
    error: str = ""


def subscribe_status(event: Event) -> SubscribeStatus:
    """Read a `subscribe-status` event, whose lists may each be absent, null, or hold what nobody expected."""
    accepted = tuple(_symbols(event.get("success")))
    refused = {symbol: plain(item.get("message")) or "refused" for symbol, item in _symbols(event.get("fails")).items()}
    words = plain(event.get("message") or event.get("messages")) or "refused"
    return SubscribeStatus(accepted, refused, words if event.get("status") == "error" else "")


def _symbols(items: object) -> dict[str, Event]:
    """Symbol → item, for a list of objects (or bare names) that name a symbol."""
    found: dict[str, Event] = {}
    for item in items if isinstance(items, list) else []:
        if isinstance(item, str):
            found[item] = {}
        elif isinstance(item, dict) and isinstance(item.get("symbol"), str):
            found[item["symbol"]] = item
    return found


def instrument_name(event: Event) -> str:
    """What tells the instruments of a session apart: symbol and exchange."""
    return ":".join(_texts(event, ("symbol", "exchange")))


#: The fields of a price event that describe the instrument, not the tick.
_INSTRUMENT_FIELDS = ("symbol", "type", "exchange", "mic_code", "currency", "currency_base", "currency_quote")


def instrument(event: Event) -> dict[str, str]:
    """What a price event says of its instrument: symbol, type, exchange, currencies, mic_code, where present."""
    return {name: plain(event[name]) for name in _INSTRUMENT_FIELDS if event.get(name)}
