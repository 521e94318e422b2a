"""Follows ticks: the past from the database, then the streams, without a gap and without a double (docs/adr/0021).

Within a stream, the numbers of a session ascend, apart from batches that a producer appended again. So an entry is new
if its number is above the highest one of its session that was seen.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable, Collection, Generator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from common.database.client import DatabaseClient
from common.errors import OutageError, TickpipeError
from common.number import to_bigint
from common.streams.channels import ChannelStreams
from common.streams.ids import Id, read_id
from common.streams.stream import Entry
from common.streams.tail import StreamTail
from tickpipe.client.tick import Tick, read_tick

logger = logging.getLogger("tickpipe.client")

#: Seconds of a wait for the next entry, of the pause between two looks at several streams, between two looks for new
#: channels, and of the longest pause after an outage.
WAIT, PAUSE, LOOK_EVERY, LONGEST_PAUSE = 0.25, 0.02, 5.0, 4.0
#: Rows of the past that are read at once.
PORTION = 10_000
#: A tick that was missed may have an exchange's time that is so much earlier than its receipt.
_MAX_DELAY = timedelta(days=1)

_PAST = """
DECLARE past NO SCROLL CURSOR FOR
SELECT time, symbol, price, day_volume, bid, ask, exchange, size, side, trade_id, received_at, session, seq, source
FROM prices_real_time
WHERE time >= %(since)s AND (%(symbols)s::text[] IS NULL OR symbol = ANY (%(symbols)s::text[]))
ORDER BY received_at, session, seq, symbol COLLATE "C"
"""


class LiveTicks:
    """The ticks of some symbols in the order of their receipt. Not for several threads at once.

    It waits for the end of an outage of Redis or of the database, and then continues without a gap.
    """

    def __init__(
        self,
        channels: ChannelStreams,
        database: DatabaseClient,
        symbols: Collection[str] | None,
        since: datetime | None,
        *,
        stop: threading.Event,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        """`symbols`: None for all. `since`: the exchange's time from which ticks of the past come first; None: none."""
        self._channels, self._database = channels, database
        self._symbols = symbols
        self._since = since
        self._started = now()  # by the clock of the producers, if there is an entry
        self._stop, self._monotonic = stop, monotonic
        self._tails: dict[str, StreamTail] = {}
        self._behind: dict[str, datetime | None] = {}  # streams whose past is missing, and since when; None: `since`
        self._received: dict[str, datetime] = {}  # by stream: when the last entry that was read was received
        self._lost_at: dict[str, tuple[Id, frozenset[int]]] = {}  # where entries were gone, and sessions seen
        self._past_ends: dict[str, Id] = {}  # entries up to here are of the past
        self._highest: dict[int, int] = {}  # by session: the highest number seen
        self._backfilled = (datetime.fromtimestamp(0, UTC), 0, "")  # the last backfilled tick that was seen
        self._next_look = float("-inf")

    def batches(self) -> Generator[list[Tick]]:
        """The ticks in batches, until `stop` is set. A batch is empty if none came for a moment.

        Raises ConfigurationError. At the end it closes its connections.
        """
        try:
            yield from self._follow()
        finally:
            self._database.close()
            for tail in self._tails.values():
                tail.stream.client.close()

    def _follow(self) -> Iterator[list[Tick]]:
        pause = PAUSE
        while not self._stop.is_set():
            try:
                self._look_for_channels()
                if self._behind:
                    yield from self._past()
                ticks = [] if self._behind else self._next()
                pause = PAUSE
            except OutageError as error:
                logger.warning("%s; the next try is in %.1f s", error, pause)
                self._stop.wait(pause)
                self._next_look = float("-inf")
                pause, ticks = min(2 * pause, LONGEST_PAUSE), []
            yield ticks

    # The streams.

    def _look_for_channels(self) -> None:
        """Follow new channels from their first entry on. At the start, all from their end on."""
        if self._monotonic() < self._next_look:
            return
        found = {}
        for stream in self._channels.prices():
            stream.check()  # the node may be a replica by now
            if stream.key not in self._tails:
                found[stream.key] = StreamTail(stream)
        if not self._tails:
            for tail in found.values():
                if self._since is None and (last := tail.go_to_end()):
                    self._note_received(tail.stream.key, last)
                    self._new_tick(tail.stream.key, last)
            self._started = min(self._received.values(), default=self._started)
            if self._since is not None:
                self._behind = dict.fromkeys(found)
        self._tails |= found
        self._next_look = self._monotonic() + LOOK_EVERY

    def _next(self) -> list[Tick]:
        """The next ticks of all streams. Waits a moment if there is none."""
        several: list[list[Tick]] = []
        try:
            for key, tail in self._tails.items():
                several.append([tick for entry in self._read(key, tail) if (tick := self._new_tick(key, entry))])
        except TickpipeError:
            if not any(several):
                raise  # else the next call meets the same error, and these ticks are not lost
        if not any(several) and not self._behind:
            self._wait()
        return list(heapq.merge(*several, key=lambda tick: tick.received_at))

    def _read(self, key: str, tail: StreamTail) -> list[Entry]:
        """The next entries of a stream; none if some are gone: then its past is read first."""
        entries = tail.read()
        if entries is None:
            self._note_gone(key, tail)
            return []
        if entries:
            self._note_received(key, entries[-1])
        return entries

    def _note_gone(self, key: str, tail: StreamTail) -> None:
        logger.warning("entries of the stream %s are gone before they were read: they come from the database", key)
        self._behind[key] = self._received.get(key, self._started if self._since is None else None)
        self._lost_at[key] = tail.place, frozenset(self._highest)

    def _wait(self) -> None:
        if len(self._tails) == 1:
            next(iter(self._tails.values())).wait(WAIT)
        else:
            self._stop.wait(PAUSE)

    def _note_received(self, key: str, entry: Entry) -> None:
        received = to_bigint((entry.fields or {}).get(b"received"))
        if received is not None:
            self._received[key] = datetime.fromtimestamp(received / 1e6, UTC)

    def _new_tick(self, key: str, entry: Entry) -> Tick | None:
        """The tick of an entry; None if it is of another symbol, a dead letter, or if it was seen before."""
        fields = entry.fields or {}
        session, seq = _identity(fields)
        if session is None or seq is None or seq <= self._highest.get(session, 0):
            return None
        self._highest[session] = seq
        place = read_id(entry.id)
        lost_at, seen = self._lost_at.get(key, ((0, 0), frozenset[int]()))
        if place <= lost_at and session not in seen:
            return None  # after a loss of data, Redis has older entries than those that were read
        if self._symbols is not None and fields.get(b"symbol", b"").decode(errors="replace") not in self._symbols:
            return None
        tick = read_tick(fields)
        if tick and self._since and tick.time < self._since and place <= self._past_ends.get(key, (0, 0)):
            return None
        return tick

    # The past.

    def _past(self) -> Iterator[list[Tick]]:
        """The ticks that the streams do not have any more, from one snapshot of the database.

        A row is of the past if its number is below the first one of its session in the streams. Entries that were
        appended before the snapshot are looked at after it, so each row is in exactly one of both.
        """
        for key in self._behind:
            self._tails[key].go_to_unprocessed()
        with self._database.transaction("REPEATABLE READ") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT FROM prices_real_time LIMIT 0")  # takes the snapshot
            first, ends = self._first_numbers()
            if len(ends) < len(self._tails):
                return  # entries were trimmed meanwhile
            starts = list(self._behind.values())
            missed_since = None if None in starts else min(filter(None, starts))
            begin = self._since if missed_since is None else missed_since - _MAX_DELAY
            if begin and self._since:
                begin = max(begin, self._since)
            symbols = None if self._symbols is None else list(self._symbols)
            cursor.execute(_PAST, {"since": begin, "symbols": symbols})
            while not self._stop.is_set() and (rows := _portion(cursor)):
                yield [tick for tick in map(Tick._make, rows) if self._is_missing(tick, first)]
        if missed_since is None:
            self._past_ends = ends
        self._behind = {}

    def _first_numbers(self) -> tuple[dict[int, int], dict[str, Id]]:
        """By session, the first number in the streams after their places; and the ends of the streams.

        A stream whose entries are gone has no end. Its past is missing, too.
        """
        first: dict[int, int] = {}

        def visit(entry: Entry) -> None:
            session, seq = _identity(entry.fields or {})
            if session is not None and seq is not None:
                first[session] = min(seq, first.get(session, seq))

        ends = {}
        for key, tail in self._tails.items():
            if (end := tail.look_ahead(visit)) is not None:
                ends[key] = end
            elif key not in self._behind:
                self._note_gone(key, tail)
        return first, ends

    def _is_missing(self, tick: Tick, first: dict[int, int]) -> bool:
        """Whether this row comes neither from the streams nor has come before."""
        if tick.source is not None:  # backfilled: `seq` is the exchange's number, for each symbol
            place = tick.received_at, tick.seq, tick.symbol
            if self._since is None or place <= self._backfilled:
                return False
            self._backfilled = place
            return True
        highest = self._highest.get(tick.session)
        if tick.seq >= first.get(tick.session, tick.seq + 1):
            return False
        if highest is None:
            if self._since is None and tick.received_at <= self._started:
                return False  # before the subscription
        elif tick.seq <= highest:
            return False
        self._highest[tick.session] = tick.seq
        return True


def _identity(fields: dict[bytes, bytes]) -> tuple[int | None, int | None]:
    return to_bigint(fields.get(b"session")), to_bigint(fields.get(b"seq"))


def _portion(cursor: Any) -> list[tuple[Any, ...]]:
    cursor.execute("FETCH %s FROM past", (PORTION,))
    found: list[tuple[Any, ...]] = cursor.fetchall()
    return found
