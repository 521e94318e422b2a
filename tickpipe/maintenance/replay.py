"""Stores missing rows again: from the streams, the spools of this machine and the dead letters."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from common.database.client import DatabaseClient
from common.errors import OutageError
from common.number import to_bigint
from common.streams.stream import Entry
from consumer.replay import Route, store_again
from consumer.writer import Writer
from producer.spool import read_spool
from producer.spool_folder import spool_files
from tickpipe.inspect.verdict import Verdict
from tickpipe.maintenance import dead_letters
from tickpipe.progress import ProgressCallback
from tickpipe.ranges import Range

logger = logging.getLogger("tickpipe.replay")

#: Entries in one transaction.
BATCH = 1000
#: Dead letters of a session that are tried again, at most.
MAX_LETTERS = 100_000
#: The field that contains an entry's number: in a stream of prices, and in one of feed events.
_NUMBER = {"prices": b"seq", "feed": b"number"}


class Replayed(NamedTuple):
    """How many entries were stored again, and how many rows are new."""

    entries: int = 0
    rows: int = 0

    def __add__(self, other: tuple[int, ...]) -> Replayed:  # type: ignore[override]
        return Replayed(self.entries + other[0], self.rows + other[1])


class Missing:
    """Numbers that are missing, by session."""

    def __init__(self, ranges: Mapping[int, Sequence[Range]]) -> None:
        """The ranges of a session are in order and do not overlap."""
        self._ranges = ranges

    def has(self, session: int | None, number: int | None) -> bool:
        """Whether this number of this session is missing."""
        ranges = self._ranges.get(session or 0, ())
        index = bisect_right(ranges, number or 0, key=lambda each: each.first) - 1
        return index >= 0 and (number or 0) <= ranges[index].last

    def among(self, entries: Iterable[Entry], name: bytes) -> Iterator[Entry]:
        """The entries whose numbers are missing. `name`: the field with the number."""
        for entry in entries:
            fields = entry.fields or {}
            if self.has(to_bigint(fields.get(b"session")), to_bigint(fields.get(name))):
                yield entry


def replay(
    channels: Sequence[Mapping[str, Route]],
    writer: Writer,
    start: bytes = b"-",
    progress: ProgressCallback = lambda *_: None,
) -> dict[str, Replayed]:
    """Store the entries of the streams again, from the id `start` on. Returns the counts for "prices" and "feed".

    `channels`: the two streams of each channel, under the names "prices" and "feed". Raises OutageError.
    """
    routes = [each for channel in channels for each in channel.items()]
    results = {what: Replayed() for what, _ in routes}
    total = sum(route.stream.backlog().length for _, route in routes)
    for what, route in routes:
        for stored, _ in store_again(writer, route.table, route.stream.key, route.stream.scan(start, BATCH), BATCH):
            results[what] += sum(stored), stored.inserted
            progress(sum(each.entries for each in results.values()), total)
    return results


def repair(
    channels: Sequence[Mapping[str, Route]],
    writer: Writer,
    store: DatabaseClient,
    spools: Mapping[str, Path],
    verdicts: Sequence[Verdict],
    progress: ProgressCallback = lambda *_: None,
    taken_over: Callable[[Path], int | None] = lambda _: None,
) -> dict[str, Replayed]:
    """Store the rows that the verdicts report as missing, from every place that has them. Returns the counts by place.

    `channels`: as in `replay`. `spools`: the folder of spools for each stream of prices. Their entries are stored,
    because their producer may never return: those before another producer became active, `taken_over` (microseconds
    UTC). Raises OutageError.
    """
    missing = {
        "prices": Missing({verdict.session: verdict.missing for verdict in verdicts}),
        "feed": Missing({verdict.session: verdict.missing_events for verdict in verdicts}),
    }
    sessions = [verdict.session for verdict in verdicts if verdict.missing or verdict.dead_letters]
    results = dict.fromkeys(("streams", "spools", "dead letters"), Replayed())
    for channel in channels:
        folder = spools.get(channel["prices"].stream.key)
        for what, route in channel.items():
            key, table = route.stream.key, route.table
            progress(0, 0, f"repairing {what}")
            wanted = missing[what].among(route.stream.scan(b"-", BATCH), _NUMBER[what])
            for stored, _ in store_again(writer, table, key, wanted, BATCH):
                results["streams"] += sum(stored), stored.inserted
            for stored, _ in store_again(writer, table, key, _spooled(folder, what, taken_over), BATCH):
                results["spools"] += sum(stored), stored.inserted
            for session in sessions:
                results["dead letters"] += _retry(store, writer, route, session)
    return results


def _spooled(folder: Path | None, what: str, taken_over: Callable[[Path], int | None]) -> Iterator[Entry]:
    """The entries for this stream in the spools of this machine, without those that another producer has received."""
    for path in spool_files(folder) if folder else ():
        try:
            since = taken_over(path)
            for number, (stream, fields) in enumerate(read_spool(path)):
                at = fields.get("received" if stream == "prices" else "at", "")
                if stream == what and (since is None or not at.isdecimal() or int(at) < since):
                    parts = [text.encode(errors="surrogatepass") for text in chain.from_iterable(fields.items())]
                    yield Entry(f"{path.stem}:{number}".encode(), parts)
        except OutageError as error:
            logger.error("spool cannot be read: %s (%s)", path, error)


def _retry(store: DatabaseClient, writer: Writer, route: Route, session: int) -> Replayed:
    """Store the dead letters of a session one by one, and delete those that are rows now."""
    result = Replayed()
    for letter in dead_letters.find(store, dead_letters.Filter(session=session), limit=MAX_LETTERS):
        if letter.stream == route.stream.key:
            stored = writer.insert_batch(route.table, letter.stream, [Entry(letter.entry_id.encode(), letter.raw)])
            if not stored.dead:
                dead_letters.delete(store, letter.id)
            result += 1, stored.inserted
    return result
