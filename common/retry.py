"""Retries after outages: capped backoff with jitter, one log line for each attempt."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_when_event_set, wait_random_exponential
from tenacity.nap import sleep_using_event

from common.errors import OutageError

#: Longest first wait and longest later wait, in seconds. The limit doubles with each attempt.
FIRST, LONGEST = 0.25, 8.0


def retrying(
    stop: threading.Event, logger: logging.Logger, on_outage: Callable[[OutageError], None] = lambda _: None
) -> Retrying:
    """Retry after each OutageError until `stop` is set; then raise the last one.

    `on_outage` is called with each error that another attempt follows.
    """

    def log(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0.0
        logger.warning("%s; try %d, next in %.1f s", error, state.attempt_number, wait)
        if isinstance(error, OutageError):
            on_outage(error)

    return Retrying(
        retry=retry_if_exception_type(OutageError),
        wait=wait_random_exponential(multiplier=FIRST, max=LONGEST),
        stop=stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        before_sleep=log,
        reraise=True,
    )
