"""The two Redis streams that a producer appends to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import cast

from common.errors import FencedError
from common.number import to_bigint
from common.streams.stream import Confirmation, Fence, Fields, Numbered, Stream
from producer.session import SPOOL_FULL

#: Entries that one read returns, at most.
MAX_SCAN = 1000
#: The field that has an entry's number in its session, by stream.
_NUMBER = {"prices": "seq", "feed": "number"}


class Streams:
    """The stream of prices and the stream of feed events.

    With a fence or a confirmation, entries are appended by their numbers, each once. Without, a repeat appends them
    again; the database recognizes them.
    """

    def __init__(
        self,
        prices: Stream,
        feed: Stream,
        *,
        fence: Fence | None = None,
        confirm: Confirmation | None = None,
        on_fenced: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`on_fenced` is called when another producer has become active, with the time in microseconds UTC."""
        self._streams = {"prices": prices, "feed": feed}
        self._fence = fence
        self._confirm = confirm
        self._on_fenced = on_fenced
        self.appended = 0  # prices that Redis has acknowledged

    def append(
        self, stream: str, entries: Sequence[Fields], *, after: Fields | None = None, confirm: bool = True
    ) -> bool:
        """Append a batch to one stream, "prices" or "feed". Returns whether it needs no other copy any more.

        `after`: the entry before the batch. If replicas must confirm, the stream must have this entry already.
        `confirm`: wait for the replicas. Raises BehindError, FencedError, StreamOutageError, ConfigurationError.
        """
        if self._fence is None and self._confirm is None:
            self._streams[stream].append(entries)
            appended, confirmed = len(entries), True
        else:
            appended, confirmed = self._append_once(stream, entries, after, confirm=confirm)
        if stream == "prices":
            self.appended += appended
        return confirmed or self._confirm is None

    def first_received(self, since: int) -> int | None:
        """When the first price was received that was received and appended from `since` on.

        `since` if it may have been trimmed. Microseconds UTC; None if there is none. Raises StreamOutageError.
        """
        prices, start = self._streams["prices"], b"%d-0" % (since // 1000)
        for entry in prices.scan(start, MAX_SCAN):
            fields = entry.fields or {}
            received = to_bigint(fields.get(b"received"))
            if received is not None and received >= since:
                is_first = fields.get(b"seq") == b"1" or any(True for _ in prices.scan(b"-", 1, b"(" + start))
                return received if is_first else since
        return None

    def _append_once(
        self, stream: str, entries: Sequence[Fields], after: Fields | None, *, confirm: bool
    ) -> tuple[int, bool]:
        batches = _by_session(entries, _NUMBER[stream], after if self._confirm else None)
        try:
            return self._streams[stream].append_once(
                batches, fence=self._fence, confirm=self._confirm if confirm else None
            )
        except FencedError as error:
            self._on_fenced(error.since)
            raise


def _by_session(entries: Sequence[Fields], name: str, after: Fields | None) -> list[Numbered]:
    """The entries by session. If `after` is given, the first batch demands it, and may be empty."""
    texts = cast("Sequence[dict[str, str]]", entries)
    batches = [
        Numbered(session, 0, [(int(fields[name]), fields) for fields in group])
        for session, group in groupby(texts, _ascending)
    ]
    if after is not None:
        last = cast("dict[str, str]", after)
        session, number = _ascending(last), last[name]
        if batches and batches[0].session == session:
            batches[0] = batches[0]._replace(after=int(number))
        else:
            batches.insert(0, Numbered(session, int(number), []))
    return batches


def _ascending(fields: Mapping[str, str]) -> str:
    """The name of the sequence in which the entry's number ascends: its session, or the losses of its publisher.

    The publisher numbers a loss while feed events with lower numbers wait in its queue, and appends it before them.
    """
    if fields.get("event") == "overflow" and SPOOL_FULL in fields["detail"]:
        return f"{fields['session']}-{SPOOL_FULL}"
    return fields["session"]
