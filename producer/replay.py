"""Appends what waits in spools: this producer's own, and those of dead producers."""

from __future__ import annotations

import logging
import threading

from common.errors import TickpipeError
from common.formatting import counted
from common.retry import retrying
from producer.queue import MAX_APPEND
from producer.spool import Spool, adopt_orphans
from producer.streams import Streams

logger = logging.getLogger("producer.publisher")

#: Seconds between searches for spools of dead producers.
ADOPT_EVERY = 15.0


def replay(spool: Spool, streams: Streams, stop: threading.Event) -> None:
    """Append what is in the spool, oldest first, until it is empty. Waits for Redis as long as necessary.

    An entry is appended again if Redis did not answer; the database recognizes it by session and number. An
    acknowledged entry is dropped at once, even if Redis keeps refusing the other stream.
    Raises OutageError if `stop` is set before the end.
    """
    while spool.entries:
        retrying(stop, logger)(_replay_once, spool, streams, stop)
        if stop.is_set():
            return


def _replay_once(spool: Spool, streams: Streams, stop: threading.Event) -> None:
    """Append all prices, then the feed events from before: a checkpoint follows the prices that it counts."""
    mark, events = spool.head("feed", MAX_APPEND)
    while spool.waiting("prices"):
        price_mark, prices = spool.head("prices", MAX_APPEND)
        streams.append("prices", prices)
        spool.drop("prices", price_mark)
        if stop.is_set():
            return
    if events:
        streams.append("feed", events)
        spool.drop("feed", mark)


class Replayer:
    """Empties this producer's spool whenever it is not empty, and the spools of dead producers in the same folder."""

    def __init__(self, spool: Spool, streams: Streams, orphans: Streams, stop: threading.Event) -> None:
        """`orphans` has a Redis client of its own, because its thread waits for Redis independently."""
        self._spool = spool
        self._streams = streams
        self._orphans = orphans
        self._stop = stop

    def run(self) -> None:
        """Replay this producer's spool until `stop` is set. Runs in a thread of its own."""
        while not self._stop.wait(0.05):
            if self._spool.entries:
                count = self._spool.entries
                try:
                    replay(self._spool, self._streams, self._stop)
                except TickpipeError as error:  # an outage, or Redis refuses the login by now
                    logger.warning("spool %s not replayed: %s", self._spool.path, error)
                    self._stop.wait(5.0)  # if the spool itself fails, do not append its head in a tight loop
                else:
                    logger.info("spool replayed: at least %s appended to Redis", counted(count, "entry"))

    def run_orphans(self) -> None:
        """Replay the spools of dead producers, now and every ADOPT_EVERY seconds. Runs in a thread of its own."""
        while True:
            for spool in adopt_orphans(self._spool.path.parent, self._spool.path):
                try:
                    logger.info("spool adopted: %s with %s", spool.path, counted(spool.entries, "entry"))
                    replay(spool, self._orphans, self._stop)
                except TickpipeError as error:  # an outage, or Redis refuses the login by now
                    logger.warning("spool %s not replayed: %s", spool.path, error)
                finally:
                    spool.close()
            if self._stop.wait(ADOPT_EVERY):
                return
