"""Delays between connections."""

from __future__ import annotations

import random


class Reconnect:
    """Computes the delay before the next connection. Pure, apart from the jitter's `rng`. All times are in seconds."""

    #: A connection that lasted this long was good: the next failure counts as the first.
    GOOD_AFTER = 60.0
    FIRST, LONGEST = 0.5, 7.0
    #: After this many possible evictions in a row, another client is probably using the key.
    EVICTIONS = 3
    FIRST_EVICTED, LONGEST_EVICTED = 15.0, 300.0

    def __init__(self, rng: random.Random) -> None:
        self.failures = 0
        self.evictions = 0
        self._rng = rng

    def after(self, *, lasted: float, evicted: bool) -> float:
        """The delay after a connection that lasted `lasted` seconds, or 0 if it was never established.

        `evicted`: the server closed it after it was subscribed, with a code that may mean an eviction.
        """
        good = lasted >= self.GOOD_AFTER
        self.evictions = self.evictions + 1 if evicted and not good else 0
        self.failures = 1 if good else self.failures + 1
        if self.evictions >= self.EVICTIONS:
            delay = self._doubled(self.FIRST_EVICTED, self.evictions - self.EVICTIONS, self.LONGEST_EVICTED)
        else:
            delay = self._doubled(self.FIRST, self.failures - 1, self.LONGEST)
        return delay * self._rng.uniform(0.5, 1.0)

    @staticmethod
    def _doubled(first: float, times: int, longest: float) -> float:
        return min(longest, first * 2.0 ** min(times, 30))
