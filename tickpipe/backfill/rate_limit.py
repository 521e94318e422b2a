"""When to make the next call."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import tenacity
from tenacity.nap import sleep_using_event

from common.errors import OutageError
from tickpipe.backfill.rest import LONGEST, TRIES, OutOfCreditsError, StoppedError

logger = logging.getLogger("tickpipe.rest")

T = TypeVar("T")


class RateLimiter:
    """When to ask: no more than `per_minute` calls in 60 s; again after an outage; where credits are out (something
    else may use the key), in the next minute. `clock` and `sleep` are in seconds; `stop` ends a sleep."""

    def __init__(
        self,
        per_minute: int,
        stop: threading.Event,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._asked: deque[float] = deque(maxlen=per_minute)
        self._stop, self._clock, self._sleep = stop, clock, sleep or sleep_using_event(stop)

    def ask(self, question: Callable[[], T]) -> T:
        """Its answer. Raises the last of TRIES OutageErrors, StoppedError, and what else it raises."""
        answer: T = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(OutageError),
            wait=self._wait,
            stop=tenacity.stop_after_attempt(TRIES),
            sleep=self._sleep,
            before_sleep=lambda state: logger.warning("%s; try %d", _cause(state), state.attempt_number),
            reraise=True,
        )(self._ask_once, question)
        return answer

    def _ask_once(self, question: Callable[[], T]) -> T:
        if len(self._asked) == self._asked.maxlen:
            self._sleep(min(60.0, max(0.0, self._asked[0] + 60.0 - self._clock())))
        if self._stop.is_set():
            raise StoppedError
        try:
            return question()
        finally:
            self._asked.append(self._clock())  # its end: the vendor has counted it before

    def _wait(self, state: tenacity.RetryCallState) -> float:
        if isinstance(_cause(state), OutOfCreditsError):
            return 61.0 - self._clock() % 60.0  # a second more, for clocks that differ
        return tenacity.wait_random_exponential(multiplier=1, max=LONGEST)(state)


def _cause(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
