"""The symbols that have prices, and the nearest ones to an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from common.errors import ConfigurationError

Symbols = str | Sequence[str]
#: Runs a query with named parameters, and returns its rows.
Query = Callable[..., list[tuple[Any, ...]]]

#: All symbols with ticks or with candles that retention has kept: one step of an index for each.
_SYMBOLS = """
WITH RECURSIVE kept AS (
    (SELECT symbol FROM candles_kept ORDER BY symbol LIMIT 1)
    UNION ALL
    SELECT (SELECT k.symbol FROM candles_kept AS k WHERE k.symbol > kept.symbol ORDER BY k.symbol LIMIT 1)
    FROM kept WHERE kept.symbol IS NOT NULL
)
SELECT known_symbols() AS symbol UNION SELECT symbol FROM kept WHERE symbol IS NOT NULL
"""
_UNKNOWN = """
SELECT name FROM unnest(%(symbols)s::text[]) AS name
WHERE NOT EXISTS (SELECT FROM prices_real_time AS p WHERE p.symbol = name)
  AND NOT EXISTS (SELECT FROM candles_kept AS k WHERE k.symbol = name)
"""


def all_symbols(query: Query) -> list[str]:
    """All symbols with prices, sorted by code point."""
    return sorted(symbol for (symbol,) in query(_SYMBOLS))


def known_symbols(symbols: Symbols, query: Query) -> list[str]:
    """These symbols without duplicates, sorted by code point. Raises ConfigurationError for none or an unknown one."""
    names = read_names(symbols)
    refuse_unknown(names, query)
    return names


def read_names(symbols: Symbols) -> list[str]:
    """The symbols without duplicates, sorted by code point. Raises ConfigurationError if there is none."""
    names = [symbols] if isinstance(symbols, str) else [*map(str, symbols)]
    if not all(names) or not names:
        raise ConfigurationError(f"symbols {symbols!r} has no symbols. Examples: 'BTC/USD', ['AAPL', 'EUR/USD']")
    return sorted(set(names))


def refuse_unknown(names: Sequence[str], query: Query) -> None:
    """Raise ConfigurationError with the nearest symbols if one of these has no prices."""
    unknown = [name for (name,) in query(_UNKNOWN, symbols=list(names))] if names else []
    if not unknown:
        return
    known = {symbol.casefold(): symbol for symbol in all_symbols(query)}
    near = {known[match] for name in unknown for match in difflib.get_close_matches(name.casefold(), known)}
    hint = (
        f"The nearest: {', '.join(sorted(near))}" if near else f"Stored are: {listed(sorted(known.values())) or 'none'}"
    )
    raise ConfigurationError(f"no prices of {', '.join(map(repr, unknown))} are stored. {hint}")


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
