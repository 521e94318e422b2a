"""Reads a stream from a place on, without a consumer group, and notices if entries are gone before they were read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple, cast

import redis

from common.errors import StreamOutageError
from common.streams.group import ConsumerGroup
from common.streams.ids import Id, id_before, id_text, read_id
from common.streams.stream import Entry

#: Entries of one read, at most.
COUNT = 1000


class _State(NamedTuple):
    """The last id, the number of entries ever added, and how many of them are gone."""

    last: Id
    added: int
    gone: int


class StreamTail:
    """One reader's place in a stream. It changes nothing in Redis, so it delays neither consumers nor trimming.

    Entries are trimmed from the beginning. So nothing after the place is gone if the entry at the place is there, or if
    exactly the entries up to the place are gone. All methods raise StreamOutageError and ConfigurationError.
    """

    def __init__(self, stream: ConsumerGroup) -> None:
        """`stream`: with the group whose acknowledged entries are stored. The place is before the first entry ever."""
        self.stream = stream
        self._place: Id = (0, 0)  # of the last entry that was read
        self._index = 0  # how many entries were added up to the place

    @property
    def place(self) -> Id:
        """The id of the last entry that was read, or of the end or start that the reader has moved to."""
        return self._place

    def go_to_end(self) -> Entry | None:
        """Move behind the last entry, and return it if it is still there."""
        state, entries = self._look("XREVRANGE", "+", "-", 1)
        self._place, self._index = state.last, state.added
        return entries[0] if entries else None

    def go_to_unprocessed(self) -> None:
        """Move before the first entry that the group has not acknowledged: all earlier ones are stored."""
        delivered, index, oldest = self.stream.position()
        place = delivered
        if oldest and oldest <= delivered:
            _, entries = self._look("XRANGE", id_text(oldest), id_text(delivered))
            if not entries or read_id(entries[0].id) != oldest:
                raise StreamOutageError(f"Redis: entries of {self.stream.key} were trimmed while they were read")
            index = None if index is None else index - len(entries)
            _, earlier = self._look("XREVRANGE", b"(" + id_text(oldest), "-", 1)
            place = read_id(earlier[0].id) if earlier else id_before(oldest)
        if index is None:
            state, entries = self._look("XRANGE", "-", id_text(place))
            index = state.gone + len(entries)
        self._place, self._index = place, index

    def look_ahead(self, visit: Callable[[Entry], None]) -> Id | None:
        """Call `visit` with each entry from the place to the present end. Returns the id of the end. The place stays.

        None if entries after the place are gone: then some were not visited.
        """
        state, _ = self._look("XRANGE", "-", "+", 1)
        for entry in self.stream.scan(b"(" + id_text(self._place), COUNT, id_text(state.last)):
            visit(entry)
        after, entries = self._look("XRANGE", id_text(self._place), "+", 1)
        return None if self._is_gone(after, entries) else state.last

    def read(self) -> list[Entry] | None:
        """The next entries, at most COUNT. Moves behind them.

        None if entries after the place are gone: they were trimmed, or Redis has lost its data. Then the place stays.
        """
        state, entries = self._look("XRANGE", id_text(self._place), "+", COUNT + 1)
        if self._is_gone(state, entries):
            return None
        if entries and read_id(entries[0].id) == self._place:
            del entries[0]
        if entries:
            self._place = read_id(entries[-1].id)
            self._index += len(entries)
        return entries

    def wait(self, seconds: float) -> None:
        """Wait until there is an entry after the place, at most this long."""
        with self.stream.translated():
            place = cast("Any", id_text(self._place))
            self.stream.client.xread({self.stream.key: place}, count=1, block=max(1, int(seconds * 1000)))

    def _is_gone(self, state: _State, entries: list[Entry]) -> bool:
        """Whether entries after the place are gone. `entries`: those from the place on."""
        return not (entries and read_id(entries[0].id) == self._place) and state.gone != self._index

    def _look(self, command: str, start: str | bytes, end: str | bytes, count: int = 0) -> tuple[_State, list[Entry]]:
        """The state of the stream and the entries of a range, of the same moment. `count`: 0 for all."""
        limit = ("COUNT", count) if count else ()
        with self.stream.translated(), self.stream.client.pipeline(transaction=True) as pipe:
            pipe.xinfo_stream(self.stream.key)
            pipe.execute_command(command, self.stream.key, start, end, *limit)  # type: ignore[no-untyped-call]
            info, reply = cast("Any", pipe.execute(raise_on_error=False))
            if isinstance(reply, redis.RedisError):
                raise reply
            return _state(info), [Entry(each, [*chain.from_iterable(fields.items())]) for each, fields in reply]


def _state(info: Any) -> _State:
    """From the reply to XINFO STREAM. A missing stream is an empty one. Raises the error in the reply."""
    if isinstance(info, redis.ResponseError) and str(info).startswith("no such key"):
        return _State((0, 0), 0, 0)
    if isinstance(info, redis.RedisError):
        raise info
    added = int(info["entries-added"])
    return _State(read_id(info["last-generated-id"]), added, added - int(info["length"]))
