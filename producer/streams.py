"""The two Redis streams that a producer appends to."""

from __future__ import annotations

from collections.abc import Sequence

from common.streams.stream import Fields, Stream


class Streams:
    """The stream of prices and the stream of feed events, on one Redis client."""

    def __init__(self, prices: Stream, feed: Stream) -> None:
        self._streams = {"prices": prices, "feed": feed}
        self.appended = 0  # prices that Redis has acknowledged

    def append(self, stream: str, entries: Sequence[Fields]) -> None:
        """Append a batch to one stream, "prices" or "feed". Redis accepts or refuses the batch as a whole."""
        self._streams[stream].append(entries)
        if stream == "prices":
            self.appended += len(entries)
