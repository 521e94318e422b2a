"""Random one-minute bars for the REST call `time_series`."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from tickpipe.simulator.listings import LISTINGS, UNLISTED
from tickpipe.simulator.random_walk import DAY, REVERSION, Event


@lru_cache(maxsize=64)
def _day_of_bars(symbol: str, day: int) -> list[Event]:
    """The bars of a day (days since 1970), with numbers as strings, as Twelve Data sends them. Repeatable."""
    listing = LISTINGS.get(symbol, UNLISTED)
    rng = random.Random(f"{symbol} {day}")  # noqa: S311  prices, not secrets
    kept = math.exp(-1 / 4 / REVERSION)
    drift, bars = 0.0, []
    price = listing.price
    for minute in range(DAY // 60):
        walked = [price]
        for _ in range(4):
            drift = drift * kept + rng.gauss(0, listing.volatility / 2)
            walked.append(listing.price * math.exp(drift))
        price = walked[-1]
        figures = {"open": walked[0], "high": max(walked), "low": min(walked), "close": price}
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day, minutes=minute)
        bar: Event = {"datetime": f"{at:%Y-%m-%d %H:%M:%S}"}
        bar |= {name: f"{figure:.{listing.decimals}f}" for name, figure in figures.items()}
        if listing.turnover and not listing.base:  # Twelve Data has no volume for pairs
            bar["volume"] = str(int(listing.turnover / DAY * 60 * rng.expovariate(1)))
        bars.append(bar)
    return bars


def bars_between(symbol: str, since: datetime, until: datetime) -> list[Event]:
    """The bars of the minutes that begin between `since` and `until`, both included, in order."""
    first, last = math.ceil(since.timestamp() / 60), math.floor(until.timestamp() / 60)
    return [_day_of_bars(symbol, minute * 60 // DAY)[minute % (DAY // 60)] for minute in range(first, last + 1)]
