"""The differences between vendors. A feed is one file beside this one: a subclass of Vendor. Pure.

Connection, watchdog, backoff, numbering, queue and spool are the same for all feeds (docs/adding-a-feed.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from common.tick import Tick

Event = Mapping[str, Any]

#: Keeps numbers as the text that the vendor sent: nothing is rounded, and nothing is parsed twice.
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
#: Fields of a price event in the order of Tick: those between its `seq` and its `received`, and those after it.
_QUOTE_FIELDS = ("symbol", "timestamp", "price", "day_volume", "bid", "ask", "exchange")
_TRADE_FIELDS = ("size", "side", "trade_id")


class SubscribeStatus(NamedTuple):
    """The server's answer to a subscription: accepted symbols, and refused symbols with the reason for each.

    `error` is the message if the server calls the whole answer an error, else "".
    """

    accepted: tuple[str, ...]
    refused: dict[str, str]
    error: str = ""


class TradeRange(NamedTuple):
    """Numbers of trades, both ends in it. `since`: a time before these trades, in seconds since 1970."""

    first: int
    last: int
    since: Decimal

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return self.last - self.first + 1


class Vendor:
    """One vendor's protocol. Names are the vendor's spelling of symbols, symbols are the user's."""

    #: The value of --feed, and the name in messages.
    name: str
    title: str
    #: Addresses of the websocket: the second is for those whom the first refuses.
    urls: Sequence[str]
    #: Symbols to try the feed with, separated by commas.
    trial_symbols = "BTC/USD,ETH/USD,SOL/USD,XRP/USD,DOGE/USD,LTC/USD,ADA/USD,LINK/USD"
    #: Whether the vendor wants an API key.
    needs_key = False
    #: Whether its price events have `size`, `side` and `trade_id`.
    has_trades = True
    #: Whether each symbol gets an answer of its own.
    answers_each = False
    #: The message that asks for a heartbeat; None if the server sends something by itself, at least once in `silence`
    #: seconds.
    heartbeat: str | None = None
    silence = math.inf
    #: Symbols of one connection, at most; 0: no limit.
    max_symbols = 0
    #: The value of `exchange` in its prices, if it is always the same.
    exchange = ""
    #: Base URL of the REST interface that answers requests for trades by number, and how many requests a second.
    rest_url = ""
    requests_per_second = 1
    #: Whether an answer with only some of the trades has the newest of them.
    newest_first = False
    #: Whether an answer begins at a time, not at a number.
    by_time = False

    def address(self, url: str, key: str) -> str:  # noqa: ARG002
        """The address to connect to. It may contain the key."""
        return url

    def spell(self, symbol: str) -> str:
        """The vendor's spelling of a symbol."""
        return symbol

    def subscribe(self, names: Sequence[str]) -> str:
        """The message that subscribes these names."""
        raise NotImplementedError

    def unsubscribe(self, names: Sequence[str]) -> str:
        """The message that ends the subscription of these names."""
        raise NotImplementedError

    def prices(self, message: Event, symbols: Mapping[str, str]) -> Sequence[Event]:
        """The price events in a message, with numbers as text; never fails. `symbols`: symbol by name.

        Each has at least `symbol`, `timestamp` (seconds since 1970), `price` and `exchange`.
        """
        raise NotImplementedError

    def answer(self, message: Event, symbols: Mapping[str, str]) -> SubscribeStatus | None:
        """The answer to a subscription in a message; None if it is another message. Never fails."""
        raise NotImplementedError

    def last_trade(self, message: Event, symbols: Mapping[str, str]) -> Event | None:  # noqa: ARG002
        """The last trade of a symbol as a message reports it, without sending it: `symbol`, `exchange`, `trade_id`,
        `timestamp`. None if it is another message. Never fails.
        """
        return None

    def is_error(self, message: Event) -> bool:
        """Whether a message that is neither a price nor an answer reports an error."""
        return message.get("type") == "error"

    def instrument(self, event: Event) -> dict[str, str]:
        """The fields of a price event that describe its instrument."""
        base, _, quote = plain(event.get("symbol")).partition("/")
        currencies = {"currency_base": base, "currency_quote": quote} if quote else {}
        names = {name: plain(event.get(name)) for name in ("symbol", "exchange")}
        return {**names, "type": "Digital Currency", **currencies}

    def trades_path(self, name: str, wanted: TradeRange) -> str:
        """Path and query of the request for these trades. An answer may have only some of them."""
        raise NotImplementedError

    def refusal(self, answer: object) -> str:  # noqa: ARG002
        """The reason, if an answer with HTTP status 200 refuses a request; "" in other answers. Never fails."""
        return ""

    def trades(self, answer: object, symbol: str) -> Sequence[Event]:
        """The price events in the answer, as `prices` returns them. Never fails."""
        raise NotImplementedError

    def parse(self, event: Event, session: int, seq: int, received: int) -> Tick:
        """The tick in a price event. Never fails: the database validates the values.

        `session` and `received` are microseconds since 1970; `seq` starts at 1.
        """
        quote = [value if type(value) is str else plain(value) for value in map(event.get, _QUOTE_FIELDS)]
        trade = [plain(event.get(name)) for name in _TRADE_FIELDS] if self.has_trades else ("", "", "")
        return Tick._make([str(session), str(seq), *quote, str(received), *trade])


def decode(text: bytes) -> object:
    """The value of a JSON text, with numbers as text; None if it is not valid."""
    try:
        value: object = _DECODER.decode(text.decode())
    except (ValueError, RecursionError):
        return None
    return value


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


def seconds(moment: object) -> str:
    """An ISO 8601 time with a zone as seconds since 1970, with all its digits. Another text stays as it is."""
    text = plain(moment)
    try:
        whole = int(datetime.fromisoformat(text).replace(microsecond=0).timestamp())
    except (ValueError, OverflowError):
        return text
    fraction = text.partition(".")[2]
    digits = fraction[: next((place for place, digit in enumerate(fraction) if not digit.isdecimal()), None)]
    return f"{whole}.{digits}" if digits else str(whole)


def items(value: object) -> list[Event]:
    """The objects in a JSON list; none if it is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
