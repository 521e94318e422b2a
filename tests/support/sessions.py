"""Sessions with chosen times: feed events and ticks stored as a consumer stores them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from common import feed_event, tick
from common.database.client import DatabaseClient
from common.streams.stream import Entry, Stream
from common.tick import Tick
from consumer.tables import FEED, PRICES
from consumer.writer import Writer

_IDS = itertools.count(1)


def entry(fields: dict[str, str]) -> Entry:
    """A stream entry with these fields."""
    return Entry(b"1-%d" % next(_IDS), [part.encode() for pair in fields.items() for part in pair])


class StoredSession:
    """One session. `start`: seconds since 1970. Other times are seconds after it."""

    def __init__(self, store: DatabaseClient, start: float) -> None:
        self.id = round(start * 1e6)
        self.start = start
        self._store = store
        self._number = 0

    def tick(self, seq: int, **other: str) -> Tick:
        """The price with number `seq`. There is one price per millisecond."""
        at = self.start + seq / 1000
        values = {
            "session": str(self.id), "seq": str(seq), "symbol": "BTC/USD", "time": str(int(at)), "price": "1.5",
            "day_volume": "", "bid": "", "ask": "", "exchange": "", "received": str(round(at * 1e6)),
        }  # fmt: skip
        return Tick(**{**values, **other})

    def store(self, seqs: Iterable[int], **other: str) -> None:
        """Store these prices."""
        Writer(self._store).insert_batch(
            PRICES, "prices", [entry(tick.encode(self.tick(seq, **other))) for seq in seqs]
        )

    def emit(self, event: str, after: float, **detail: object) -> None:
        """Store a feed event."""
        self._number += 1
        at = round((self.start + after) * 1e6)
        stored = feed_event.make(self.id, self._number, at, event, detail)
        Writer(self._store).insert_batch(FEED, "prices:feed", [entry(feed_event.encode(stored))])

    def skip(self, event: str, after: float, *, to: Stream, **detail: object) -> None:
        """Append a feed event to its stream without storing it."""
        self._number += 1
        at = round((self.start + after) * 1e6)
        to.append([feed_event.encode(feed_event.make(self.id, self._number, at, event, detail))])

    def checkpoint(self, event: str, after: float, last_seq: int) -> None:
        """Store the checkpoint `alive` or `stopped`."""
        span = {"time_min": int(self.start), "time_max": int(self.start + last_seq / 1000)}
        self.emit(event, after, last_seq=last_seq, **span)
