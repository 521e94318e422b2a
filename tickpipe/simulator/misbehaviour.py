"""What happens to trades between an exchange and its clients. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tickpipe.simulator.trades import Trade

#: Takes each trade in order, and returns the trades to send at this moment.
Wire = Callable[[Trade], Sequence[Trade]]


class Misbehaviour:
    """A wire that drops, repeats and delays trades at random. Each of these is a share of all trades, 0 to 1.

    A delayed trade comes after the next one of its symbol.
    """

    def __init__(self, rng: random.Random, *, drop: float = 0.0, repeat: float = 0.0, delay: float = 0.0) -> None:
        self._rng = rng
        self._drop, self._repeat, self._delay = drop, repeat, delay
        self._delayed: dict[str, Trade] = {}

    def __call__(self, trade: Trade) -> Sequence[Trade]:
        """See Wire."""
        chance = self._rng.random()
        if chance < self._drop:
            return ()
        if (late := self._delayed.pop(trade.name, None)) is not None:
            return trade, late
        if chance < self._drop + self._repeat:
            return trade, trade
        if chance < self._drop + self._repeat + self._delay:
            self._delayed[trade.name] = trade
            return ()
        return (trade,)
