"""Finds trades that an exchange has numbered and not sent. Pure."""

from __future__ import annotations

from typing import NamedTuple

from common.number import is_finite
from common.tick import Tick

#: Symbols whose last number is kept in memory, at most.
MAX_KNOWN = 100_000


class _Seen(NamedTuple):
    number: int
    received: int
    time: str


class TradeNumbers:
    """The highest number of each symbol so far, over all connections and sessions of a producer."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], _Seen] = {}

    def skipped(self, tick: Tick) -> dict[str, object] | None:
        """The numbers between this trade and the one before, as the detail of a feed event; None if there are none.

        `first_id` and `last_id` are missing. `since` and `until` (microseconds UTC) are when the trades around them
        were received, `time_min` and `time_max` their times at the exchange. A trade that arrives late is found in the
        database by `verify`.
        """
        if not tick.trade_id.isdecimal() or len(tick.trade_id) > 18:
            return None
        key, seen = (tick.symbol, tick.exchange), _Seen(int(tick.trade_id), int(tick.received), tick.time)
        before = self._last.get(key)
        if before is None or before.number < seen.number:
            if len(self._last) >= MAX_KNOWN:
                self._last.clear()
            self._last[key] = seen
        if before is None or seen.number <= before.number + 1:
            return None
        times = {
            name: float(text) for name, text in (("time_min", before.time), ("time_max", seen.time)) if is_finite(text)
        }
        return {
            "symbol": tick.symbol, "exchange": tick.exchange, "first_id": before.number + 1,
            "last_id": seen.number - 1, "since": before.received, "until": seen.received, **times,
        }  # fmt: skip
