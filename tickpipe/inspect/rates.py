"""The rate at which a counter grows."""

from __future__ import annotations

from collections import deque

#: Seconds over which a rate is averaged.
RATE_WINDOW = 5.0


class Rate:
    """The growth of a counter per second, averaged over RATE_WINDOW."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, now: float, count: int) -> float:
        """Add a sample taken at `now` (seconds) and return the rate. 0 for the first sample and after a reset."""
        if self._samples and count < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, count))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_WINDOW:
            self._samples.popleft()
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        return (after - before) / (last - first) if last > first else 0.0
