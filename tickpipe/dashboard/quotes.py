"""The newest price of every symbol, with its change and the line of its last minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tickpipe.formatting import decimals
from tickpipe.inspect.cached_query import CachedQuery
from tickpipe.inspect.symbols import MINUTES, NewestTick, SymbolReader

#: Symbols whose lines are read at once, at most: each costs MINUTES index look-ups.
LINES_AT_ONCE = 50
#: Seconds before the newest tick of all in which the newest tick of a symbol is searched.
SEARCH_WINDOW = 900.0


@dataclass(frozen=True)
class Quote:
    """The newest tick of a symbol. Times are seconds since 1970.

    `closes`: by minute since 1970, the newest last. `has_past`: the closes of its earlier minutes have been read.
    """

    symbol: str
    price: float
    time: float
    received: float
    decimals: int
    closes: Mapping[int, float]
    has_past: bool = False

    @property
    def change(self) -> float | None:
        """The change since the first close, as a fraction of it. A rise is positive for negative prices, too."""
        first = next(iter(self.closes.values()), 0.0)
        return (self.price - first) / abs(first) if first else None

    @property
    def minutes(self) -> int:
        """The minutes over which the change is measured."""
        return int(self.time // 60) - next(iter(self.closes), int(self.time // 60)) + 1

    def with_tick(self, tick: NewestTick) -> Quote:
        """The quote after a newer tick. Drops closes of later minutes: their ticks were ahead of their arrival."""
        closes = _last_minutes({**self.closes, int(tick.time // 60): tick.price}, tick.time)
        places = max(self.decimals, decimals([tick.price]))
        return replace(self, price=tick.price, time=tick.time, received=tick.received, decimals=places, closes=closes)

    def with_past(self, closes: Mapping[int, float]) -> Quote:
        """The quote with earlier minutes. Closes that it has already stay."""
        closes = _last_minutes(dict(sorted({**closes, **self.closes}.items())), self.time)
        places = max(self.decimals, decimals(list(closes.values())))
        return replace(self, decimals=places, closes=closes, has_past=True)


def _last_minutes(closes: Mapping[int, float], newest: float) -> Mapping[int, float]:
    return {minute: close for minute, close in closes.items() if newest // 60 - MINUTES < minute <= newest // 60}


class Quotes:
    """Reads the quotes of all symbols, for all browsers together."""

    def __init__(self, symbols: SymbolReader, *, every: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`every`: seconds between two readings, at least."""
        self._symbols = symbols
        self._quotes: dict[str, Quote] = {}
        self._names = CachedQuery(symbols.names, 10.0, monotonic)
        #: Every symbol's quote, in the order of names. An unchanged quote stays the same object. Raises OutageError.
        self.read: Callable[[], Mapping[str, Quote]] = CachedQuery(self._read, every, monotonic)

    def _read(self) -> Mapping[str, Quote]:
        names = self._names()
        known = [name for name in names if name in self._quotes]
        # A tick whose time is ahead of its arrival must not move the search window.
        newest = max((min(quote.time, quote.received) for quote in self._quotes.values()), default=0.0)
        self._update(known, newest - SEARCH_WINDOW)
        self._update([name for name in names if name not in self._quotes], 0.0)
        self._quotes = {name: self._quotes[name] for name in names if name in self._quotes}
        self._add_past([quote for quote in self._quotes.values() if not quote.has_past][:LINES_AT_ONCE])
        return dict(self._quotes)

    def _update(self, names: Sequence[str], since: float) -> None:
        if not names:
            return
        for tick in self._symbols.newest(names, since):
            quote = self._quotes.get(tick.symbol)
            if quote is None:
                closes = {int(tick.time // 60): tick.price}
                places = decimals([tick.price])
                self._quotes[tick.symbol] = Quote(tick.symbol, tick.price, tick.time, tick.received, places, closes)
            elif (tick.time, tick.received) != (quote.time, quote.received):
                self._quotes[tick.symbol] = quote.with_tick(tick)

    def _add_past(self, quotes: Sequence[Quote]) -> None:
        if not quotes:
            return
        closes = self._symbols.closes({quote.symbol: quote.time for quote in quotes})
        for quote in quotes:
            self._quotes[quote.symbol] = quote.with_past(closes[quote.symbol])
