"""A query whose result is cached, so that many callers cost no more than one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: The pause before the next query, as a multiple of the time that a query takes: queries use at most 5 % of one core.
#: The shorter of the last two durations counts. A single slow query may only have waited for a lock or a server that
#: hung: with its 15 s alone, prices would stay old for 5 minutes.
PAUSE_FACTOR = 20.0


class CachedQuery(Generic[T]):
    """Calls a query at most once per interval, and returns the cached result in between. Thread-safe."""

    def __init__(
        self,
        query: Callable[[], T],
        every: float,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        pause_factor: float = PAUSE_FACTOR,
    ) -> None:
        """`every`: seconds from a result to the next query, at least. Slow queries pause longer (PAUSE_FACTOR)."""
        self._query = query
        self._every = every
        self._pause_factor = pause_factor
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._next = float("-inf")
        self._duration = 0.0  # seconds that the last query took
        self._result: T | None = None

    def __call__(self) -> T:
        """The result, new or cached. Raises what the query raises; the next call then queries again."""
        with self._lock:
            began = self._monotonic()
            if self._result is None or began >= self._next:
                self._result = self._query()
                ended = self._monotonic()
                previous, self._duration = self._duration, ended - began
                self._next = ended + max(self._every, self._pause_factor * min(previous, self._duration))
            return self._result
