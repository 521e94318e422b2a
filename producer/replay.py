"""Appends what waits in spools."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from common.errors import TickpipeError
from common.retry import retrying
from producer.publisher import Streams
from producer.queue import MAX_APPEND
from producer.spool import Spool, adopt_orphans

logger = logging.getLogger("producer.publisher")
#: Seconds between looks for spools that dead producers left.
ADOPT_EVERY = 15.0


def replay(spool: Spool, streams: Streams, stop: threading.Event) -> None:
    """Append what is in the spool, oldest first, until it is empty; waits for Redis as long as it takes.

    An entry whose append was not answered is appended again: the database knows it by its session and number. An
    acknowledged entry is dropped at once, even if the other stream refuses its entries for ever.
    Raises OutageError when told to stop before the end.
    """
    while spool.entries:
        retrying(stop, logger)(_replay_once, spool, streams, stop)
        if stop.is_set():
            return


def _replay_once(spool: Spool, streams: Streams, stop: threading.Event) -> None:
    """Append all prices, then the feed events that were there before: an `alive` comes after the prices it names."""
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
    """Empties this producer's spool whenever it is not empty, and those that dead producers left, beside it."""

    def __init__(self, spool: Spool, streams: Streams, orphans: Streams, stop: threading.Event) -> None:
        """`orphans` are streams of their own client: each thread waits for Redis by itself."""
        self._spool = spool
        self._streams = streams
        self._orphans = orphans
        self._stop = stop

    def run(self) -> None:
        """Replay the live session's spool, until told to stop. One thread's work."""
        while not self._stop.wait(0.05):
            if self._spool.entries:
                count = self._spool.entries
                try:
                    replay(self._spool, self._streams, self._stop)
                except TickpipeError as error:  # an outage, or a login that is refused by now
                    logger.warning("%s", error)
                    self._stop.wait(5.0)  # the spool itself fails: without a pause its head would be appended in a loop
                else:
                    logger.info("Redis is back: the spool is replayed (%d entries or more)", count)

    def run_orphans(self) -> None:
        """Replay what dead producers left, now and every ADOPT_EVERY seconds. One thread's work."""
        while True:
            for spool in adopt_orphans(self._spool.path.parent, self._spool.path):
                try:
                    logger.info("adopted the spool %s: %d entries", spool.path, spool.entries)
                    replay(spool, self._orphans, self._stop)
                except TickpipeError as error:  # an outage, or a login that is refused by now
                    logger.warning("%s", error)
                finally:
                    spool.close()
            if self._stop.wait(ADOPT_EVERY):
                return


def spool_path(folder: Path, session: int) -> Path:
    """The spool file of the producer's run that began with this session."""
    return folder / f"{session}.spool"
