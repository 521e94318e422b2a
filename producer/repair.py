"""Runs `tickpipe backfill` after a reconnect, and after trades were not received: `producer --repair`.

It is a process of its own: the producer has no database, and its threads have no time for requests.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib.util import find_spec

from common import settings
from common.errors import ConfigurationError
from producer.feeds.vendor import Vendor

logger = logging.getLogger("producer.repair")

#: Seconds after a change until each run. A gap is found in the database, so consumers must have stored it.
DELAYS = (5.0, 60.0, 600.0)
#: Seconds between two looks at the feed.
POLL_EVERY = 0.5
#: Seconds that a run may take to stop after SIGTERM.
STOP_WITHIN = 2.0


def check(environ: Mapping[str, str]) -> None:
    """Raise ConfigurationError if `tickpipe backfill` cannot run here."""
    if settings.read_database_url(environ) is None:
        raise ConfigurationError("--repair needs DATABASE_URL: it finds missing prices in the database")
    if not find_spec("requests"):
        raise ConfigurationError("--repair needs the extra `backfill`: pip install 'tickpipe[backfill]'")


class Repair:
    """Runs the command some seconds after each change of the feed."""

    def __init__(
        self,
        vendor: Vendor,
        changes: Callable[[], Hashable],
        *,
        command: Sequence[str] = (sys.executable, "-m", "tickpipe", "backfill", "--feed"),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`changes` is another value after each reconnect and each loss. `monotonic` gives seconds."""
        self._changes = changes
        self._command = [*command, vendor.name]
        self._monotonic = monotonic
        self._seen: Hashable = None
        self._due: deque[float] = deque()

    def run(self, stop: threading.Event) -> None:
        """Run the command when it is due, until `stop` is set."""
        while not stop.wait(POLL_EVERY):
            if self.is_due():
                self._run_command(stop)

    def is_due(self) -> bool:
        """Whether the command must run now. After a change it runs again later, for prices that are not stored yet."""
        now = self._monotonic()
        if (changes := self._changes()) != self._seen:
            self._seen = changes
            self._due = deque(now + delay for delay in DELAYS)
        if not self._due or now < self._due[0]:
            return False
        self._due.popleft()
        return True

    def _run_command(self, stop: threading.Event) -> None:
        process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        ending = threading.Thread(target=_end, args=(process, stop), daemon=True)
        ending.start()
        output, _ = process.communicate()
        if not stop.is_set():
            level = logging.WARNING if process.returncode else logging.INFO
            logger.log(level, "repair: %s", output.strip().replace("\n", "; "))


def _end(process: subprocess.Popen[str], stop: threading.Event) -> None:
    """End the process when `stop` is set."""
    while process.poll() is None:
        if stop.wait(POLL_EVERY):
            process.terminate()
            try:
                process.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
            return
