"""Limits the rate of REST calls and repeats failed calls."""

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
from tickpipe.backfill.rest import OutOfCreditsError, StoppedError

logger = logging.getLogger("tickpipe.rest")

#: Attempts of a call. After an outage the waits are random, up to 1, 2, 4 … seconds and at most MAX_WAIT.
ATTEMPTS, MAX_WAIT = 5, 8.0

T = TypeVar("T")


class RateLimiter:
    """Makes at most `limit` calls in `period` seconds, and repeats a call after an outage.

    If the credits are used up, since another program may use the key, it repeats the call in the next minute. `clock`
    and `sleep` are in seconds. `stop` ends a sleep.
    """

    def __init__(
        self,
        limit: int,
        stop: threading.Event,
        *,
        period: float = 60.0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._calls: deque[float] = deque(maxlen=limit)
        self._period = period
        self._stop, self._clock, self._sleep = stop, clock, sleep or sleep_using_event(stop)

    def call(self, request: Callable[[], T]) -> T:
        """The result of `request`. Raises its errors (an OutageError after ATTEMPTS) and StoppedError."""
        answer: T = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(OutageError),
            wait=self._wait,
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            sleep=self._sleep,
            before_sleep=lambda state: logger.warning(
                "backfill: call failed: %s; attempt %d", _cause(state), state.attempt_number
            ),
            reraise=True,
        )(self._call_once, request)
        return answer

    def _call_once(self, request: Callable[[], T]) -> T:
        if len(self._calls) == self._calls.maxlen:
            self._sleep(min(self._period, max(0.0, self._calls[0] + self._period - self._clock())))
        if self._stop.is_set():
            raise StoppedError
        try:
            return request()
        finally:
            self._calls.append(self._clock())  # at its end: the vendor has counted it by then

    def _wait(self, state: tenacity.RetryCallState) -> float:
        if isinstance(_cause(state), OutOfCreditsError):
            return self._period + 1.0 - self._clock() % self._period  # one more second, since clocks differ
        return tenacity.wait_random_exponential(multiplier=1, max=MAX_WAIT)(state)


def _cause(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
