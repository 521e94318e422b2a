"""The differences between exchanges, as their clients see them. An exchange is one file beside this one. Pure.

These are the other ends of `producer/feeds/`, and share no code with them: a wrong reading of a protocol would not be
found otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from tickpipe.simulator.listings import LISTINGS, Listing
from tickpipe.simulator.trades import Tape, Trade

#: An HTTP status and the JSON body.
Reply = tuple[int, object]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Subscriptions:
    """The symbols, in the exchange's spelling, of which a client gets trades and heartbeats.

    `idle`: whether nothing was sent to it since the last heartbeat.
    """

    trades: set[str] = field(default_factory=set)
    heartbeats: set[str] = field(default_factory=set)
    idle: bool = True


class Venue:
    """An exchange's protocol. Times are in microseconds since 1970."""

    #: The value of --feed, and the name in messages.
    name: str
    title: str
    #: Path of the websocket, and of requests that `rest` answers.
    path = "/"
    #: Body of the answer 429 to a request above the limit.
    too_many: ClassVar[object]

    def spell(self, symbol: str) -> str:
        """The exchange's spelling of a symbol."""
        return symbol

    def listings(self) -> Mapping[str, Listing]:
        """The symbols that are traded."""
        return {self.spell(each.symbol): each for each in LISTINGS.values() if each.type == "Digital Currency"}

    def greeting(self) -> Sequence[str]:
        """The messages to a client that has connected."""
        return ()

    def answer(self, request: object, client: Subscriptions, tape: Tape, now: int) -> Sequence[str]:
        """The answers to a client's message, which changes its subscriptions. `request` is a JSON value."""
        raise NotImplementedError

    def messages(self, trades: Sequence[Trade], now: int) -> Sequence[str]:
        """The messages with these trades of one symbol."""
        return [trade.message or self.message(trade, now) for trade in trades]

    def message(self, trade: Trade, now: int) -> str:
        """The message with this trade."""
        raise NotImplementedError

    def heartbeats(self, client: Subscriptions, tape: Tape, now: int) -> Sequence[str]:
        """The messages of each second."""
        raise NotImplementedError

    def farewell(self, now: int) -> str | None:  # noqa: ARG002
        """The message that announces that the server will close the connection; None if the exchange has none."""
        return None

    def recorded(self, message: Mapping[str, Any]) -> Sequence[Trade]:
        """The trades in a recorded message, with numbers as text. Raises KeyError, ValueError and TypeError."""
        raise NotImplementedError

    def rest(self, path: str, params: Mapping[str, str], tape: Tape) -> Reply | None:
        """The answer to a REST request; None for another path. Raises ValueError for a parameter."""
        raise NotImplementedError

    def parse(self, text: str) -> Sequence[Trade]:
        """The trades in the text of a recorded message; none in a message of any other kind."""
        try:
            message = json.loads(text, parse_float=str)
            trades = self.recorded(message) if isinstance(message, dict) else ()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return ()
        return [trades[0]._replace(message=text)] if len(trades) == 1 else trades


def iso(at: int) -> str:
    """A time as ISO 8601 with microseconds."""
    return f"{_EPOCH + timedelta(microseconds=at):%Y-%m-%dT%H:%M:%S.%fZ}"


def from_iso(text: str) -> int:
    """The time of an ISO 8601 text. Raises ValueError."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def texts(value: object) -> list[str]:
    """The texts in a JSON list; none if it is not a list."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def known(names: Collection[str], tape: Tape) -> list[str]:
    """Those of these symbols that are traded."""
    return [name for name in names if name in tape.names]


def count(params: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A parameter that limits the number of trades. Raises ValueError."""
    limit = int(params.get(name, default))
    if limit < 1:
        raise ValueError(f"{name} must be 1 or more")
    return min(limit, most)
