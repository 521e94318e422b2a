"""Prices that move at random."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass
from typing import Any, Protocol

from tickpipe.simulator.listings import LISTINGS, Listing

logger = logging.getLogger(__name__)

Event = dict[str, Any]

DAY = 86_400
#: Minutes after which a price has come about a third of the way back to where it began, so that it stays plausible.
REVERSION = 480


class EventSource(Protocol):
    """Where price events come from. Called in the simulator's thread alone."""

    def instrument(self, symbol: str) -> Event | None:
        """`symbol`, `exchange`, `mic_code`, `country` and `type` as a subscribe-status tells them; None if unknown."""

    def event(self, symbol: str, exchange: str | None, now: float) -> Event:
        """The next price event of a known symbol; `exchange` as the client named it; `now` in seconds since 1970."""


@dataclass(slots=True)
class _PriceState:
    at: float  # seconds since 1970, as everywhere here
    volume: float
    drift: float = 0.0  # natural logarithm of the price over the one it began with


class RandomWalk:
    """Prices of the instruments in LISTINGS that move as lively as the real ones; one market for all connections."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._states: dict[str, _PriceState] = {}

    def instrument(self, symbol: str) -> Event | None:
        listing = LISTINGS.get(symbol.upper())
        if listing is None:
            return None
        return {name: getattr(listing, name) for name in ("symbol", "exchange", "mic_code", "country", "type")}

    def event(self, symbol: str, exchange: str | None, now: float) -> Event:
        """The next price event; `now` and `timestamp` in seconds UTC. KeyError if the symbol is not listed."""
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
        """Let the price and the day's volume move on to `now`, by as much whether asked often or seldom."""
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
