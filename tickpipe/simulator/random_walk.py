"""Random prices."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, Protocol

from tickpipe.simulator.listings import LISTINGS, Listing

Event = dict[str, Any]

DAY = 86_400
#: Time constant, in minutes, of the return to the initial price. It keeps prices plausible.
REVERSION = 480


class EventSource(Protocol):
    """A source of price events. Only the simulator's thread calls it."""

    def instrument(self, symbol: str) -> Event | None:
        """`symbol`, `exchange`, `mic_code`, `country` and `type`, as in a subscribe-status event; None if unknown."""

    def event(self, symbol: str, exchange: str | None, now: float) -> Event:
        """The next price event of a known symbol. The client named the `exchange`; `now` is in seconds since 1970."""


@dataclass(slots=True)
class _PriceState:
    at: float  # seconds since 1970
    volume: float
    drift: float = 0.0  # natural logarithm of price / initial price


class RandomWalk:
    """A random walk for each instrument in LISTINGS, as volatile as the real one. All connections share it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._states: dict[str, _PriceState] = {}

    def instrument(self, symbol: str) -> Event | None:
        listing = LISTINGS.get(symbol.upper())
        if listing is None:
            return None
        return {name: getattr(listing, name) for name in ("symbol", "exchange", "mic_code", "country", "type")}

    def event(self, symbol: str, exchange: str | None, now: float) -> Event:
        """The next price event. `now` is in seconds since 1970. Raises KeyError for an unknown symbol."""
        listing = LISTINGS[symbol.upper()]
        state = self._advance(listing, now)
        price = round(listing.price * math.exp(state.drift), listing.decimals)
        event: Event = {"event": "price", "symbol": listing.symbol}
        if listing.base:
            event |= {"currency_base": listing.base, "currency_quote": listing.quote}
        else:
            event |= {"currency": listing.quote}
        if listing.exchange:
            event |= {"exchange": exchange or listing.exchange}
        if not listing.base:
            event |= {"mic_code": listing.mic_code}
        event |= {"type": listing.type, "timestamp": int(now), "price": price}
        if listing.base:
            half_spread = max(10**-listing.decimals, price * 0.00001)
            event["bid"] = round(price - half_spread, listing.decimals)
            event["ask"] = round(price + half_spread, listing.decimals)
        if listing.turnover:
            event["day_volume"] = round(state.volume, 4) if listing.base else int(state.volume)
        return event

    def _advance(self, listing: Listing, now: float) -> _PriceState:
        """Move price and day volume forward to `now`. The distribution does not depend on how often this is called."""
        state = self._states.get(listing.symbol)
        if state is None:
            state = self._states[listing.symbol] = _PriceState(now, listing.turnover * (now % DAY) / DAY)
        if now // DAY != state.at // DAY:
            state.volume = 0.0
        elapsed = max(0.0, now - state.at)
        state.at = now
        kept = math.exp(-elapsed / 60 / REVERSION)
        state.drift = state.drift * kept + self._rng.gauss(
            0, listing.volatility * math.sqrt(REVERSION * (1 - kept**2) / 2)
        )
        state.volume += listing.turnover * elapsed / DAY * self._rng.expovariate(1)
        return state
