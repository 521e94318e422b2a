"""Compares the numbers that an exchange gives to its trades. Pure."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from common.number import is_finite
from producer.feeds.vendor import plain

logger = logging.getLogger("producer.feed")

#: Symbols whose numbers are kept in memory, at most.
MAX_KNOWN = 100_000
#: Ranges of missing numbers that are kept for each symbol, at most. Older numbers count as unknown.
MAX_RANGES = 100


class Numbered(NamedTuple):
    """The result of a comparison with the numbers before.

    - `repeated`: the trade was received before.
    - `skipped`: the detail of a feed event, if numbers are missing before this one.
    """

    repeated: bool = False
    skipped: Mapping[str, object] | None = None


NEXT, REPEATED = Numbered(), Numbered(repeated=True)


class _Known:
    """The numbers of one symbol: all from `first` to `last` were received, but those in `missing`."""

    __slots__ = ("first", "last", "missing", "received", "time")

    def __init__(self, first: int, last: int, received: int, time: str) -> None:
        self.first, self.last, self.received, self.time = first, last, received, time
        self.missing: list[tuple[int, int]] = []  # ranges, both ends in them

    def advance(self, number: int, received: int, time: str) -> None:
        self.last, self.received, self.time = number, received, time

    def lack(self, first: int, last: int) -> None:
        self.missing.append((first, last))
        self._forget_oldest()

    def find(self, number: int) -> bool:
        """Whether this number was missing. Then it no longer is."""
        for place, (first, last) in enumerate(self.missing):
            if first <= number <= last:
                left = [part for part in ((first, number - 1), (number + 1, last)) if part[0] <= part[1]]
                self.missing[place : place + 1] = left
                return True
        return False

    def extend(self, number: int) -> None:
        """Remember a number before the first one."""
        if number < self.first - 1:
            self.missing.insert(0, (number + 1, self.first - 1))
        self.first = number
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        if len(self.missing) > MAX_RANGES:
            self.first = self.missing.pop(0)[1] + 1


class TradeNumbers:
    """The numbers of each symbol so far, over all connections and sessions of a producer."""

    def __init__(self) -> None:
        self.gaps = 0  # ranges of missing trades, so far
        self._known: dict[tuple[str, str], _Known] = {}

    def check(self, event: Mapping[str, Any], now: int) -> Numbered:
        """Compare the number of a price event with those before. `now`: microseconds UTC.

        A trade that arrives late is neither repeated nor skipped: the database finds that it is no longer missing. If
        an exchange begins again with small numbers, its trades are newer than the last one, and are accepted.
        """
        number = _number(event)
        if number is None:
            return NEXT
        key, time = (plain(event.get("symbol")), plain(event.get("exchange"))), plain(event.get("timestamp"))
        known = self._known.get(key)
        if known is None:
            self._remember(key, _Known(number, number, now, time))
            return NEXT
        if number == known.last + 1:
            known.advance(number, now, time)
            return NEXT
        if number > known.last:
            self.gaps += 1
            return Numbered(skipped=_skip(known, key, number - 1, number, now, time))
        if known.find(number):
            return NEXT
        if _is_newer(time, known.time):
            logger.warning("%s begins to number trades of %s again: %d after %d", key[1], key[0], number, known.last)
            self._remember(key, _Known(number, number, now, time))
            return NEXT
        if number >= known.first:
            return REPEATED
        known.extend(number)
        return NEXT

    def announce(self, event: Mapping[str, Any], now: int) -> Mapping[str, object] | None:
        """Compare the number of the last trade, as the exchange reports it, with those that were received.

        Returns the detail of a feed event, if trades are missing.
        """
        number = _number(event)
        if number is None:
            return None
        key, time = (plain(event.get("symbol")), plain(event.get("exchange"))), plain(event.get("timestamp"))
        known = self._known.get(key)
        if known is None:
            self._remember(key, _Known(number + 1, number, now, time))
            return None
        if number <= known.last:
            return None
        self.gaps += 1
        return _skip(known, key, number, number, now, time)

    def forget(self, symbols: Iterable[str]) -> None:
        """Forget these symbols: their trades are no longer expected."""
        gone = frozenset(symbols)
        self._known = {key: known for key, known in self._known.items() if key[0] not in gone}

    def _remember(self, key: tuple[str, str], known: _Known) -> None:
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[key] = known


def _skip(known: _Known, key: tuple[str, str], until: int, number: int, now: int, time: str) -> Mapping[str, object]:
    """The detail of the feed event `skipped`: no trade after the last one up to `until` was received.

    `since` and `until` (microseconds UTC) are when the trades around them were received, `time_min` and `time_max`
    their times at the exchange.
    """
    first = known.last + 1
    times = {name: float(text) for name, text in (("time_min", known.time), ("time_max", time)) if is_finite(text)}
    detail = {
        "symbol": key[0], "exchange": key[1], "first_id": first, "last_id": until, "since": known.received,
        "until": now, **times,
    }  # fmt: skip
    known.lack(first, until)
    known.advance(number, now, time)
    return detail


def _number(event: Mapping[str, Any]) -> int | None:
    text = event.get("trade_id")
    if not isinstance(text, str) or not text.isdecimal() or not text.isascii() or len(text) > 18:
        return None
    return int(text) or None  # Coinbase's heartbeat has 0 if it does not know the number


def _is_newer(time: str, before: str) -> bool:
    return is_finite(time) and is_finite(before) and float(time) > float(before)
