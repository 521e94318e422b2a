"""The symbols of the feed: wanted, requested and accepted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from producer.feeds.vendor import Vendor


class Subscription:
    """The symbols that are wanted, those requested on the open connection, and those that the server has accepted."""

    def __init__(self, vendor: Vendor, symbols: Iterable[str]) -> None:
        self.accepted: tuple[str, ...] = ()
        self.wanted: frozenset[str] = frozenset()
        self.symbols: Mapping[str, str] = {}  # wanted symbol by the vendor's name
        self._vendor = vendor
        self._requested: frozenset[str] = frozenset()
        self.set_wanted(symbols)

    def set_wanted(self, symbols: Iterable[str]) -> None:
        """Replace the wanted symbols. Callable from any thread; takes effect with the next `update`."""
        wanted = frozenset(symbol.upper() for symbol in symbols)
        self.symbols = {self._vendor.spell(symbol): symbol for symbol in wanted}
        self.wanted = wanted

    @property
    def changed(self) -> bool:
        """Whether the wanted symbols differ from the requested ones."""
        return self.wanted != self._requested

    def subscribe_all(self) -> str:
        """The message that subscribes all wanted symbols."""
        self._requested = self.wanted
        return self._vendor.subscribe(self._names(self._requested))

    def update(self) -> list[str]:
        """The messages that turn what was requested into what is wanted."""
        before, self._requested = self._requested, self.wanted
        added, removed = self._names(self._requested - before), self._names(before - self._requested)
        messages = [self._vendor.subscribe(added)] if added else []
        return messages + ([self._vendor.unsubscribe(removed)] if removed else [])

    def accept(self, symbols: Iterable[str]) -> None:
        """Record symbols that the server has accepted."""
        self.accepted = tuple(sorted({*self.accepted, *symbols}))

    @property
    def unanswered(self) -> list[str]:
        """Wanted symbols that the server has not accepted."""
        return sorted(symbol for symbol in self.wanted if symbol.partition(":")[0] not in self.accepted)

    def drop_unwanted(self) -> tuple[str, ...]:
        """Remove accepted symbols that are no longer wanted, and return them."""
        names = {symbol.partition(":")[0] for symbol in self.wanted}  # AAPL:NASDAQ is accepted as AAPL
        dropped = tuple(symbol for symbol in self.accepted if symbol not in names)
        self.accepted = tuple(symbol for symbol in self.accepted if symbol in names)
        return dropped

    def _names(self, symbols: Iterable[str]) -> list[str]:
        return [self._vendor.spell(symbol) for symbol in sorted(symbols)]
