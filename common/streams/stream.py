"""One Redis stream: append, scan, trim.

Errors leave this package as StreamOutageError (retry) or ConfigurationError (a person must act). No command, script or
transaction uses two keys, so that each stream can live on another node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import chain
from typing import Any, NamedTuple, cast

import redis
from redis.commands.core import Script

from common import rights
from common.streams.errors import ErrorTranslator

Fields = Mapping[str, str] | Mapping[bytes, bytes]
#: Fields of an entry that append.lua accepts, at most. Lua's unpack() fails at 8,000 values, after earlier writes.
MAX_FIELDS = 3500


class Entry(NamedTuple):
    """A stream entry: its id, and its names and values in turn. `parts` is None if it was deleted while pending."""

    id: bytes
    parts: Sequence[bytes] | None

    @property
    def fields(self) -> dict[bytes, bytes] | None:
        """Its values by name."""
        return None if self.parts is None else dict(zip(self.parts[::2], self.parts[1::2], strict=True))


class Stream:
    """One stream."""

    def __init__(self, client: redis.Redis, key: str) -> None:
        self.key = key
        self._redis = client
        self._errors = ErrorTranslator(client)
        self._append = load_script(client, "append")
        self._trim = load_script(client, "trim")

    def check(self) -> bool:
        """Return whether the stream exists. Raises ConfigurationError for a key of another type or a missing right."""
        return self._errors.check_key(self.key, "stream", {})

    def check_append(self) -> bool:
        """As `check`, with the rights of a producer."""
        return self._errors.check_key(self.key, "stream", rights.append(self.key))

    def append(self, entries: Sequence[Fields]) -> None:
        """Append the entries in one round trip, all or none. After a StreamOutageError they may be in the stream.

        A lone surrogate, which JSON can spell and UTF-8 cannot, is written as its bytes. The consumer rejects it.
        """
        self.append_parts([list(chain.from_iterable(cast("Any", fields.items()))) for fields in entries])

    def append_parts(self, entries: Sequence[Sequence[str | bytes]]) -> None:
        """As `append`, for entries that are names and values in turn. A name may occur twice."""
        if any(not 0 < len(parts) <= 2 * MAX_FIELDS for parts in entries):
            self._append_by_transaction(entries)
            return
        arguments: list[Any] = []
        for parts in entries:
            arguments.append(len(parts))
            arguments.extend(parts)
        with self._errors.translated(self.key):
            try:
                self._append(keys=[self.key], args=arguments)
            except UnicodeEncodeError:  # raised before anything is sent: hiredis packs strict UTF-8
                self._append(keys=[self.key], args=[_encode(argument) for argument in arguments])

    def _append_by_transaction(self, entries: Sequence[Sequence[str | bytes]]) -> None:
        with self._errors.translated(self.key), self._redis.pipeline(transaction=True) as pipe:
            for parts in entries:
                pipe.execute_command("XADD", self.key, "*", *map(_encode, parts))  # type: ignore[no-untyped-call]
            pipe.execute()

    def trim(self) -> int:
        """Delete the entries that every group has read and acknowledged. Returns their number."""
        with self._errors.translated(self.key):
            return int(cast("Any", self._trim(keys=[self.key])))

    def scan(self, start: bytes, count: int) -> Iterator[Entry]:
        """The entries from the id `start` on (`b"-"`: from the first), read `count` at a time."""
        while True:
            with self._errors.translated(self.key):
                raw = cast("list[Any]", self._redis.xrange(self.key, min=cast("Any", start), count=count))
            yield from (Entry(each, [*chain.from_iterable(fields.items())]) for each, fields in raw)
            if len(raw) < count:
                return
            start = b"(" + raw[-1][0]


def load_script(client: redis.Redis, name: str) -> Script:
    """The Lua script of this name in this package."""
    return client.register_script((files("common.streams") / f"{name}.lua").read_text(encoding="utf-8"))


def _encode(argument: object) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode(errors="surrogatepass")
