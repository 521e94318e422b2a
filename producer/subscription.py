"""The symbols of the feed: wanted, requested and accepted."""

from __future__ import annotations

import json
from collections.abc import Iterable

from twelvedata.websocket import TDWebSocket


class Subscription:
    """The symbols that are wanted, those requested on the open connection, and those that the server has accepted.

    Only the vendor's static message builders are used: an instance of TDWebSocket starts a thread that never ends.
    """

    def __init__(self, symbols: Iterable[str]) -> None:
        self.wanted: frozenset[str] = frozenset(TDWebSocket.normalize_symbols(symbols))
        self.accepted: tuple[str, ...] = ()
        self._requested: frozenset[str] = frozenset()

    def set_wanted(self, symbols: Iterable[str]) -> None:
        """Replace the wanted symbols. Callable from any thread; takes effect with the next `update`."""
        self.wanted = frozenset(TDWebSocket.normalize_symbols(symbols))

    @property
    def changed(self) -> bool:
        """Whether the wanted symbols differ from the requested ones."""
        return self.wanted != self._requested

    def subscribe_all(self) -> str:
        """The message that subscribes all wanted symbols."""
        self._requested = self.wanted
        return json.dumps(TDWebSocket.subscribe_event(sorted(self._requested)))

    def update(self) -> list[str]:
        """The messages that turn what was requested into what is wanted."""
        before, self._requested = self._requested, self.wanted
        added, removed = sorted(self._requested - before), sorted(before - self._requested)
        messages = [TDWebSocket.subscribe_event(added)] if added else []
        messages += [TDWebSocket.unsubscribe_event(removed)] if removed else []
        return [json.dumps(message) for message in messages]

    def accept(self, symbols: Iterable[str]) -> None:
        """Record symbols that the server has accepted."""
        self.accepted = tuple(sorted({*self.accepted, *symbols}))

    def drop_unwanted(self) -> tuple[str, ...]:
        """Remove accepted symbols that are no longer wanted, and return them."""
        names = {symbol.partition(":")[0] for symbol in self.wanted}  # AAPL:NASDAQ is accepted as AAPL
        dropped = tuple(symbol for symbol in self.accepted if symbol not in names)
        self.accepted = tuple(symbol for symbol in self.accepted if symbol in names)
        return dropped
