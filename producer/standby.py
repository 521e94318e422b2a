"""Waits for the lease of the feed, and runs a producer while this process has the lease.

While Redis is unavailable no process can take the lease. So the active producer continues, and spools. When Redis is
available again, a waiting producer first waits for one lifetime of the lease, so that the active one can renew it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait

from common import threads
from common.errors import FencedError, OutageError, TickpipeError
from common.streams.lease import Lease
from common.streams.stream import Fence

logger = logging.getLogger("producer.standby")

#: Seconds between two attempts to take the lease.
POLL = 0.1
#: Renewals within the lifetime of the lease.
RENEWALS = 4


class Standby:
    """One of several producers with the same feed name, of which one is active. The others wait."""

    def __init__(
        self,
        lease: Lease,
        run: Callable[[Fence, threading.Event, Standby], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`run` receives and publishes, with the right to append that its fence gives, until its event is set.

        `monotonic` gives seconds.
        """
        self.fenced_since: int | None = None  # microseconds UTC
        self._lease = lease
        self._run = run
        self._monotonic = monotonic
        self._ended = threading.Event()  # of the current run
        self._handed_over = False
        self._guard = threading.Lock()

    def run(self, stop: threading.Event) -> None:
        """Be active or wait, in turn, until `stop` is set. Raises the errors of the producer."""
        while not stop.is_set() and (fence := self._wait(stop)):
            self.fenced_since = None
            self._ended.clear()
            self._handed_over = False
            logger.info("active: this producer has the lease")
            renewing = threads.in_thread(self._renew, fence, stop)
            renewing.add_done_callback(lambda _: self._ended.set())
            try:
                self._run(fence, self._ended, self)
            finally:
                self._ended.set()
                wait([renewing])
                self.hand_over()
            renewing.result()

    def on_fenced(self, since: int) -> None:
        """End the run: another producer is active since `since`, microseconds UTC. Callable from any thread."""
        if self.fenced_since is None:
            self.fenced_since = since
            if not self._handed_over:
                logger.warning("fenced: another producer of this feed is active; this one waits for the lease")
        self._ended.set()

    def hand_over(self) -> None:
        """Release the lease. Call it when Redis has everything that was received."""
        with self._guard:  # a renewal at the same time would take the lease again
            if self.fenced_since is None and not self._handed_over:
                self._handed_over = True
                try:
                    self._lease.release()
                    logger.info("handed over: another producer may be active now")
                except TickpipeError as error:
                    logger.warning("the lease ends by itself: %s", error)

    def _wait(self, stop: threading.Event) -> Fence | None:
        """Wait until this process has the lease; None if `stop` was set before."""
        shown, patient_until, failed = "", 0.0, False
        while not stop.is_set():
            try:
                if failed:
                    self._lease.holder()
                    patient_until, failed = self._monotonic() + self._lease.lifetime, False
                if self._monotonic() >= patient_until and (fence := self._lease.acquire()):
                    return fence
                if (holder := self._lease.holder() or "") not in {"", shown}:
                    logger.info("waiting: %s is active", holder)
                    shown = holder
            except OutageError as error:
                if not failed:
                    logger.warning("%s; waiting", error)
                failed = True
            stop.wait(POLL)
        return None

    def _renew(self, fence: Fence, stop: threading.Event) -> None:
        """Renew the lease until the run has ended. No error ends it, such as a password that was changed in Redis."""
        due, shown = 0.0, ""
        while not self._ended.wait(min(POLL, self._lease.lifetime / RENEWALS)):
            if stop.is_set():
                self._ended.set()
            if self._monotonic() < due:
                continue
            try:
                with self._guard:
                    if self._ended.is_set():
                        break
                    self._lease.renew(fence)
                due, shown = self._monotonic() + self._lease.lifetime / RENEWALS, ""
            except FencedError as error:
                self.on_fenced(error.since)
            except OutageError as error:
                logger.debug("lease not renewed: %s", error)
            except TickpipeError as error:
                if str(error) != shown:
                    shown = str(error)
                    logger.warning("lease not renewed: %s", error)
