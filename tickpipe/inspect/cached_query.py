"""An answer for many who ask: never asked for more often than it can be had cheaply."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: A question is asked again after so many times as long as its answer took: it takes 5 % of a core, never more. That
#: it was slow once tells nothing of its cost: it stood behind a lock, or a server that hung. So the shorter of the last
#: two answers' times holds; else one stall of 15 s would be followed by 5 minutes of old prices.
PATIENCE = 20.0


class CachedQuery(Generic[T]):
    """An answer that is asked for anew at most every so often, however many browsers want it."""

    def __init__(
        self,
        ask: Callable[[], T],
        every: float,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        patience: float = PATIENCE,
    ) -> None:
        """`every`: seconds from one answer to the next question; longer where answers are slow (PATIENCE)."""
        self._ask = ask
        self._every = every
        self._patience = patience
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._next = float("-inf")
        self._took = 0.0  # seconds, by the answer before
        self._answer: T | None = None

    def __call__(self) -> T:
        """The answer, new or remembered. What the question raises is raised; then it is asked again next time."""
        with self._lock:
            began = self._monotonic()
            if self._answer is None or began >= self._next:
                self._answer = self._ask()
                ended = self._monotonic()
                took, self._took = self._took, ended - began
                self._next = ended + max(self._every, self._patience * min(took, self._took))
            return self._answer
