"""The trades of a simulated exchange. Pure."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from tickpipe.simulator.listings import Listing

#: The beginning of each market, 2020-01-01, in microseconds since 1970.
OPENED = 1_577_836_800_000_000
#: Trades that are made together, and how many such blocks are kept in memory.
BLOCK, BLOCKS = 256, 64
#: Period in seconds of each wave of a price, and its height in standard deviations of one minute.
WAVES = ((25_200, 12.0), (2_820, 5.0), (360, 2.0))


class Trade(NamedTuple):
    """A trade. `name` is the exchange's spelling of the symbol, `side` that of the order that caused the trade.

    `at` is in microseconds since 1970. `message` is the message of a recorded trade, if it has no other trade.
    """

    name: str
    number: int
    price: str
    size: str
    side: str
    at: int
    message: str = ""


class Tape(Protocol):
    """The trades so far of each symbol, numbered without a hole."""

    @property
    def names(self) -> Collection[str]:
        """The symbols, in the exchange's spelling."""

    def last(self, name: str) -> int:
        """The number of the newest trade; the one before the first trade if there is none yet."""

    def trades(self, name: str, first: int, last: int) -> Sequence[Trade]:
        """The trades so far with these numbers."""

    def after(self, name: str, at: int) -> int:
        """The number of the first trade later than this, in microseconds since 1970, which may not be made yet."""


class Market:
    """Random trades. Each is a function of the seed, the symbol and its number, so none is kept in memory.

    Trades go on while nothing runs: another market with the same seed and rate, later, has the same trades and newer
    ones.
    """

    def __init__(self, listings: Mapping[str, Listing], rate: float, seed: int, clock: Callable[[], float]) -> None:
        """`rate` is in trades per second of each symbol, `clock` in seconds since 1970."""
        self._listings = listings
        self._rate = rate
        self._seed = seed
        self._clock = clock
        self._block = lru_cache(maxsize=BLOCKS)(self._make_block)

    @property
    def names(self) -> Collection[str]:
        """See Tape."""
        return self._listings

    def last(self, name: str) -> int:
        """See Tape."""
        now = int(self._clock() * 1e6)
        slot = self._slot(now)
        return _offset(name) + slot - (self._at(name, slot).at > now)

    def trades(self, name: str, first: int, last: int) -> Sequence[Trade]:
        """See Tape."""
        offset = _offset(name)
        slots = range(max(0, first - offset), min(last, self.last(name)) - offset + 1)
        return [self._at(name, slot) for slot in slots]

    def after(self, name: str, at: int) -> int:
        """See Tape."""
        slot = max(0, self._slot(at) - 1)
        while self._at(name, slot).at <= at:
            slot += 1
        return _offset(name) + slot

    def _slot(self, at: int) -> int:
        """The span of time, of one trade each, that contains this moment."""
        return math.floor((at - OPENED) * self._rate / 1e6)

    def _at(self, name: str, slot: int) -> Trade:
        """The trade of a span of time, perhaps in the future."""
        return self._block(name, slot // BLOCK)[slot % BLOCK]

    def _make_block(self, name: str, block: int) -> list[Trade]:
        rng = random.Random(f"{self._seed} {name} {block}")  # noqa: S311  prices, not secrets
        listing, offset = self._listings[name], _offset(name)
        size = listing.turnover / 86_400 / self._rate
        trades = []
        for slot in range(block * BLOCK, (block + 1) * BLOCK):
            at = OPENED + int((slot + rng.random()) * 1e6 / self._rate)
            drift = sum(height * math.sin(math.tau * (at / 1e6 + offset) / period) for period, height in WAVES)
            price = listing.price * math.exp(listing.volatility * (drift + rng.gauss(0, 0.05)))
            trades.append(
                Trade(
                    name, offset + slot, f"{price:.{listing.decimals}f}", f"{max(1e-8, rng.expovariate(1) * size):.8f}",
                    rng.choice(("buy", "sell")), at,
                )
            )  # fmt: skip
        return trades


def _offset(name: str) -> int:
    """The first number of a symbol: no two symbols have the same numbers at the same time."""
    return 1 + zlib.crc32(name.encode()) % 1_000_000
