"""An answer for many who ask: never asked for more often than it can be had cheaply."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: A question is asked again after so many times as long as its answer took: it takes 5 % of a core, never more.
PATIENCE = 20.0


class Paced(Generic[T]):
    """An answer that is asked for anew at most every so often, however many browsers want it."""

    def __init__(self, ask: Callable[[], T], every: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`every`: seconds from one answer to the next question; longer where the answer is slow (PATIENCE)."""
        self._ask = ask
        self._every = every
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._next = float("-inf")
        self._answer: T | None = None

    def __call__(self) -> T:
        """The answer, new or remembered. What the question raises is raised; then it is asked again next time."""
        with self._lock:
            began = self._monotonic()
            if self._answer is None or began >= self._next:
                self._answer = self._ask()
                ended = self._monotonic()
                self._next = ended + max(self._every, PATIENCE * (ended - began))
            return self._answer
