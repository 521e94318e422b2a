"""The newest price of every symbol, and its last minutes as a small line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tickpipe.formatting import decimals
from tickpipe.inspect.cached_query import CachedQuery
from tickpipe.inspect.database import Reader

#: Minutes that the small line shows, and that a change is told over.
MINUTES = 30
#: Symbols whose small lines are read from the database at one look: 30 index look-ups each.
LINES_AT_ONCE = 50
#: A symbol's newest tick is looked for no further back than this before the newest of all, in seconds.
LATE = 900.0


@dataclass(frozen=True)
class Quote:
    """The newest tick of a symbol, times in seconds since 1970. `closes`: by minute since 1970, the newest last."""

    symbol: str
    price: float
    time: float
    received: float
    places: int  # decimals
    closes: Mapping[int, float]
    drawn: bool = False  # its earlier minutes have been read

    @property
    def change(self) -> float | None:
        """Of the price since the first of the minutes shown, as a fraction of what it was; up is up below 0, too."""
        first = next(iter(self.closes.values()), 0.0)
        return (self.price - first) / abs(first) if first else None

    @property
    def minutes(self) -> int:
        """How long the change took."""
        return int(self.time // 60) - next(iter(self.closes), int(self.time // 60)) + 1

    def then(self, price: float, at: float, received: float) -> Quote:
        """After a newer tick. Minutes after it are of a tick that was ahead of its time: they go."""
        closes = _last_minutes({**self.closes, int(at // 60): price}, at)
        return replace(self, price=price, time=at, received=received, places=_places(self, [price]), closes=closes)

    def with_past(self, closes: Mapping[int, float]) -> Quote:
        """With its earlier minutes; what came since stays."""
        closes = _last_minutes(dict(sorted({**closes, **self.closes}.items())), self.time)
        return replace(self, places=_places(self, list(closes.values())), closes=closes, drawn=True)


def _last_minutes(closes: Mapping[int, float], newest: float) -> Mapping[int, float]:
    return {minute: close for minute, close in closes.items() if newest // 60 - MINUTES < minute <= newest // 60}


def _places(quote: Quote, prices: Sequence[float]) -> int:
    return max(quote.places, decimals(prices))


class Quotes:
    """Looks at all symbols, for all browsers together."""

    def __init__(self, reader: Reader, *, every: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`every`: seconds between two looks, at least."""
        self._reader = reader
        self._quotes: dict[str, Quote] = {}
        self._names = CachedQuery(self._read_names, 10.0, monotonic)
        self.look = CachedQuery(self._look, every, monotonic)

    def _look(self) -> Mapping[str, Quote]:
        """Every symbol's quote by its name, in the order of names; the same object while nothing has changed."""
        names = self._names()
        known = [name for name in names if name in self._quotes]
        # A time that is ahead of when its tick was received is wrong: no bound may come from it.
        newest = max((min(quote.time, quote.received) for quote in self._quotes.values()), default=0.0)
        self._take(known, newest - LATE)
        self._take([name for name in names if name not in self._quotes], 0.0)
        self._quotes = {name: self._quotes[name] for name in names if name in self._quotes}
        self._draw([quote for quote in self._quotes.values() if not quote.drawn][:LINES_AT_ONCE])
        return dict(self._quotes)

    def _read_names(self) -> list[str]:
        return [name for (name,) in self._reader.rows(_NAMES) if name is not None]

    def _take(self, names: Sequence[str], since: float) -> None:
        if not names:
            return
        for name, price, at, received in self._reader.rows(_NEWEST, names=list(names), since=_moment(since)):
            quote = self._quotes.get(name)
            if quote is None:
                self._quotes[name] = Quote(name, price, at, received, decimals([price]), {int(at // 60): price})
            elif (at, received) != (quote.time, quote.received):
                self._quotes[name] = quote.then(price, at, received)

    def _draw(self, quotes: Sequence[Quote]) -> None:
        if not quotes:
            return
        lines: dict[str, dict[int, float]] = {quote.symbol: {} for quote in quotes}
        newest = [_moment(quote.time // 60 * 60) for quote in quotes]
        oldest = _moment(min(quote.time for quote in quotes) - (MINUTES + 1) * 60)
        for name, minute, price in self._reader.rows(
            _LINES, names=list(lines), newest=newest, minutes=MINUTES, oldest=oldest
        ):
            lines[name][minute] = price
        for quote in quotes:
            self._quotes[quote.symbol] = quote.with_past(lines[quote.symbol])


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# One step of the primary key a symbol, not one a row.
_NAMES = """
WITH RECURSIVE names AS (
    (SELECT symbol FROM prices_real_time ORDER BY symbol LIMIT 1)
    UNION ALL
    SELECT (SELECT p.symbol FROM prices_real_time p WHERE p.symbol > names.symbol ORDER BY p.symbol LIMIT 1)
    FROM names WHERE names.symbol IS NOT NULL
)
SELECT symbol FROM names
"""

_NEWEST = """
SELECT names.symbol, newest.price, extract(epoch FROM newest.time)::float8,
       extract(epoch FROM newest.received_at)::float8
FROM unnest(%(names)s::text[]) AS names (symbol)
CROSS JOIN LATERAL latest_ticks(names.symbol, 1, %(since)s) AS newest
"""

# The last price of each minute, by an index look-up each: the rows in between are not read.
_LINES = """
SELECT names.symbol, (extract(epoch FROM minute.start) / 60)::int, last.price
FROM unnest(%(names)s::text[], %(newest)s::timestamptz[]) AS names (symbol, newest)
CROSS JOIN LATERAL (
    SELECT names.newest - step * interval '1 minute' AS start FROM generate_series(0, %(minutes)s - 1) AS step
) AS minute
CROSS JOIN LATERAL (
    SELECT price FROM prices_real_time p
    WHERE p.symbol = names.symbol AND p.time >= %(oldest)s
      AND p.time >= minute.start AND p.time < minute.start + interval '1 minute'
    ORDER BY p.time DESC, p.session DESC, p.seq DESC LIMIT 1
) AS last
"""
