"""How long to wait before the next connection."""

from __future__ import annotations

import logging
import random

logger = logging.getLogger("producer.feed")


class Reconnect:
    """How long to wait before the next connection. Pure but for the jitter's `rng`."""

    #: A connection that lasted this long was good: the next failure is the first again.
    GOOD_AFTER = 60.0
    FIRST, LONGEST = 0.5, 7.0
    #: This many closes in a row that may be evictions, each soon after subscribing: another client uses the key.
    EVICTIONS = 3
    FIRST_EVICTED, LONGEST_EVICTED = 15.0, 300.0

    def __init__(self, rng: random.Random) -> None:
        self.failures = 0
        self.evictions = 0
        self._rng = rng

    def after(self, *, lasted: float, evicted: bool) -> float:
        """Seconds to wait after a connection that lasted `lasted` seconds (0: it never came up).

        `evicted`: the server closed it after it had been subscribed, with a code that may mean an eviction.
        """
        good = lasted >= self.GOOD_AFTER
        self.evictions = self.evictions + 1 if evicted and not good else 0
        self.failures = 1 if good else self.failures + 1
        if self.evictions >= self.EVICTIONS:
            delay = self._grown(self.FIRST_EVICTED, self.evictions - self.EVICTIONS, self.LONGEST_EVICTED)
        else:
            delay = self._grown(self.FIRST, self.failures - 1, self.LONGEST)
        return delay * self._rng.uniform(0.5, 1.0)

    @staticmethod
    def _grown(first: float, times: int, longest: float) -> float:
        return min(longest, first * 2.0 ** min(times, 30))
