"""Appends what waits in spools: this producer's own, and those of dead producers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import TickpipeError, UnconfirmedError
from common.formatting import counted
from common.retry import retrying
from producer.queue import MAX_APPEND
from producer.spool import Chunk, Spool
from producer.spool_folder import adopt_orphans
from producer.streams import Streams

logger = logging.getLogger("producer.publisher")


def replay(spool: Spool, streams: Streams, stop: threading.Event) -> None:
    """Append what is in the spool, oldest first, until it is empty. Waits for Redis as long as necessary.

    An entry is appended again if Redis did not answer; the database recognizes it by session and number. An
    acknowledged entry is dropped at once, even if Redis keeps refusing the other stream. If replicas must confirm,
    entries are dropped when they have confirmed all that is appended.
    Raises OutageError if `stop` is set before the end.
    """
    while spool.entries:
        retrying(stop, logger)(_replay_once, spool, streams, stop)
        if stop.is_set():
            return


def _replay_once(spool: Spool, streams: Streams, stop: threading.Event) -> None:
    """Append all prices, then the feed events from before: a checkpoint follows the prices that it counts.

    Then drop what replicas have confirmed.
    """
    events = spool.head("feed", MAX_APPEND)
    while spool.not_appended("prices"):
        _append(spool, streams, "prices", spool.head("prices", MAX_APPEND))
        if stop.is_set():
            return
    if events.entries:
        _append(spool, streams, "feed", events)
    if not all(_confirm(spool, streams, stream) for stream in ("prices", "feed")):
        raise UnconfirmedError(f"too few replicas have confirmed {counted(spool.entries, 'entry')} in the spool")


def _append(spool: Spool, streams: Streams, stream: str, chunk: Chunk) -> None:
    """Append a chunk of the spool. Drop it, unless replicas must confirm it."""
    with _forgetting(spool, stream):
        confirmed = streams.append(stream, chunk.entries, after=chunk.previous, confirm=False)
    if confirmed:
        spool.drop(stream, chunk.mark)
    else:
        spool.set_appended(stream, chunk)


def _confirm(spool: Spool, streams: Streams, stream: str) -> bool:
    """Drop the appended part of the spool if replicas confirm all that was appended before. Returns whether they do."""
    mark, last = spool.appended(stream)
    if last is None:
        return True
    with _forgetting(spool, stream):
        confirmed = streams.append(stream, [], after=last)
    if confirmed:
        spool.drop(stream, mark)
    return confirmed


@contextmanager
def _forgetting(spool: Spool, stream: str) -> Iterator[None]:
    """After an error, another node may be the primary: it may lack what is appended."""
    try:
        yield
    except TickpipeError:
        spool.forget_appended(stream)
        raise


class Replayer:
    """Empties this producer's spool whenever it is not empty."""

    def __init__(self, spool: Spool, streams: Streams, stop: threading.Event) -> None:
        self._spool = spool
        self._streams = streams
        self._stop = stop

    def run(self) -> None:
        """Replay until `stop` is set. Runs in a thread of its own."""
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


def replay_orphans(
    folder: Path, streams: Streams, stop: threading.Event, prepare: Callable[[Spool], None] = lambda _: None
) -> None:
    """Empty the spools that dead producers have left in the folder of one channel. Returns early if `stop` is set.

    `streams` has Redis clients of its own, because its thread waits for Redis independently.
    """
    for spool in adopt_orphans(folder):
        try:
            logger.info("spool adopted: %s with %s", spool.path, counted(spool.entries, "entry"))
            prepare(spool)
            replay(spool, streams, stop)
        except TickpipeError as error:  # an outage, or Redis refuses the login by now
            logger.warning("spool %s not replayed: %s", spool.path, error)
        finally:
            spool.close()
