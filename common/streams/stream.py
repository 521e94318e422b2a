"""One Redis stream: append, scan, trim.

Errors leave this package as StreamOutageError (retry) or ConfigurationError (a person must act). All keys of a command,
script or transaction are in the same slot of a Redis Cluster, so that each stream can be on another node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any, NamedTuple, cast

import redis
from redis.exceptions import NoPermissionError, NoScriptError

from common import rights
from common.errors import BehindError, ConfigurationError, FencedError
from common.streams.client import expect_primary
from common.streams.errors import ErrorTranslator
from common.streams.keys import beside
from common.streams.scripts import load_script

Fields = Mapping[str, str] | Mapping[bytes, bytes]
#: Fields of an entry that append.lua accepts, at most. Lua's unpack() fails at 8,000 values, after earlier writes.
MAX_FIELDS = 3500
#: Seconds that the mark of a session is kept after its last entry. A spool may wait that long for Redis.
KEEP_MARK = 7 * 86_400


class Entry(NamedTuple):
    """A stream entry: its id, and its names and values in turn. `parts` is None if it was deleted while pending."""

    id: bytes
    parts: Sequence[bytes] | None

    @property
    def fields(self) -> dict[bytes, bytes] | None:
        """Its values by name."""
        return None if self.parts is None else dict(zip(self.parts[::2], self.parts[1::2], strict=True))


class Numbered(NamedTuple):
    """Entries of one session, each with its number, in ascending order.

    `after`: the number before the first entry, if the stream must have it already, else 0.
    """

    session: str
    after: int
    entries: Sequence[tuple[int, Fields]]


class Fence(NamedTuple):
    """The right of a producer to append: the name of its feed, and since when it is active (microseconds UTC)."""

    feed: str
    epoch: int


class Confirmation(NamedTuple):
    """How many replicas must have an append on disk, and how many seconds they may take."""

    replicas: int
    timeout: float


class Memory(NamedTuple):
    """Bytes of a stream, and of its server: used, and the limit if it has one."""

    stream: int
    used: int
    limit: int | None


class Stream:
    """One stream."""

    def __init__(self, client: redis.Redis, key: str) -> None:
        self.key = key
        self._redis = client
        self._errors = ErrorTranslator(client)
        self._append = load_script(client, "append")
        self._append_once = load_script(client, "append_once")
        self._trim = load_script(client, "trim")

    @property
    def client(self) -> redis.Redis:
        """The client, for commands that are not about this stream."""
        return self._redis

    def check(self) -> bool:
        """Return whether the stream exists. Raises ConfigurationError for a key of another type or a missing right."""
        return self._errors.check_key(self.key, "stream", {})

    def check_append(self) -> bool:
        """As `check`, with the rights of a producer."""
        return self._errors.check_key(self.key, "stream", rights.append(self.key))

    def check_append_once(self, replicas: int) -> bool:
        """As `check_append`, with the rights of `append_once`. `replicas`: how many must confirm.

        Raises ConfigurationError if the server does not know what its replicas have on disk.
        """
        exists = self.check_append()
        mark, fence = beside(self.key, "high:*"), beside(self.key, "fence")
        self._errors.check_key(mark, "string", rights.mark(mark))
        self._errors.check_key(fence, "hash", rights.fence(fence))
        if replicas:
            with self._errors.translated(self.key):
                self._expect_confirmations()
        return exists

    def _expect_confirmations(self) -> None:
        try:
            self._redis.execute_command("WAIT", 0, 1)  # type: ignore[no-untyped-call]
            self._redis.execute_command("WAITAOF", 1, 0, 1)  # type: ignore[no-untyped-call]
        except (NoPermissionError, redis.ConnectionError, redis.TimeoutError):
            raise
        except redis.ResponseError as error:
            advice = "set `appendonly yes`" if "appendonly" in str(error) else "it needs Redis 7.2 or newer, or Valkey"
            raise ConfigurationError(
                f"REDIS_REPLICAS is set, but this Redis does not report what is on disk ({error}): {advice}"
            ) from None

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

    def append_once(
        self, batches: Sequence[Numbered], *, fence: Fence | None = None, confirm: Confirmation | None = None
    ) -> tuple[int, bool]:
        """Append the entries that the stream does not have yet, in one round trip.

        Returns how many were appended, and whether enough replicas confirmed all of them in time: False without
        `confirm`. Raises BehindError if the stream lacks the entries before a batch, FencedError if another producer of
        the feed is active, and StreamOutageError; then the same call may be repeated.
        """
        calls = [self._arguments_once(batch, fence) for batch in batches]
        with self._errors.translated(self.key):
            try:
                replies = self._run_once(calls, confirm)
            except UnicodeEncodeError:  # raised before anything is sent: hiredis packs strict UTF-8
                encoded = [[_encode(argument) for argument in call] for call in calls]
                replies = self._run_once(encoded, confirm)
        appended = sum(replies[: len(calls)])
        if confirm is None:
            return appended, False
        on_disk_here, on_replicas = replies[-1]
        return appended, on_disk_here >= 1 and min(replies[-2], on_replicas) >= confirm.replicas

    def _arguments_once(self, batch: Numbered, fence: Fence | None) -> list[Any]:
        feed, epoch = fence or ("", "")
        mark = beside(self.key, f"high:{batch.session}")
        arguments: list[Any] = [3, self.key, mark, beside(self.key, "fence"), feed, epoch, batch.after, KEEP_MARK]
        for number, fields in batch.entries:
            arguments += number, 2 * len(fields)
            arguments.extend(chain.from_iterable(cast("Any", fields.items())))
        return arguments

    def _run_once(self, calls: Sequence[Sequence[Any]], confirm: Confirmation | None) -> list[Any]:
        """The replies to all calls of the script, then to WAIT and WAITAOF. Raises the first error among them."""
        script = self._append_once
        while True:
            with self._redis.pipeline(transaction=False) as pipe:
                for call in calls:
                    pipe.execute_command("EVALSHA", script.sha, *call)  # type: ignore[no-untyped-call]
                if confirm:
                    # On the connection that wrote. Without WAIT, a replica would report its fsync only once a second.
                    milliseconds = int(confirm.timeout * 1000)
                    pipe.execute_command("WAIT", confirm.replicas, milliseconds)  # type: ignore[no-untyped-call]
                    pipe.execute_command("WAITAOF", 1, confirm.replicas, milliseconds)  # type: ignore[no-untyped-call]
                replies = pipe.execute(raise_on_error=False)
            error = next((reply for reply in replies if isinstance(reply, redis.RedisError)), None)
            if isinstance(error, NoScriptError):  # a new primary, or a restart: no call has changed anything
                self._redis.script_load(script.script)
            elif error:
                raise _refusal(error) from error
            else:
                return replies

    def _append_by_transaction(self, entries: Sequence[Sequence[str | bytes]]) -> None:
        with self._errors.translated(self.key), self._redis.pipeline(transaction=True) as pipe:
            for parts in entries:
                pipe.execute_command("XADD", self.key, "*", *map(_encode, parts))  # type: ignore[no-untyped-call]
            pipe.execute()

    def trim(self, keep: float = 0.0, max_bytes: int = 0) -> int:
        """Delete entries that every group has read and acknowledged. Returns their number.

        `keep`: seconds that they stay after they were appended. `max_bytes`: if the stream uses more memory, they stay
        for a shorter time; 0 means no limit.
        """
        with self._errors.translated(self.key):
            return int(cast("Any", self._trim(keys=[self.key], args=[int(keep * 1000), max_bytes])))

    def recall(self, name: str, field: str) -> str | None:
        """The value that a process has remembered beside this stream."""
        key = beside(self.key, name)
        with self.translated(key):
            found = cast("bytes | None", self._redis.hget(key, field))
        return None if found is None else found.decode(errors="replace")

    def remember(self, name: str, field: str, value: str) -> None:
        """Keep a value in the hash `name` beside this stream."""
        key = beside(self.key, name)
        with self.translated(key):
            self._redis.hset(key, field, value)

    def check_key(self, key: str, kind: str, commands: rights.Commands) -> bool:
        """Return whether a key beside this stream exists, as `check`."""
        return self._errors.check_key(key, kind, commands)

    def translated(self, key: str = "") -> AbstractContextManager[None]:
        """Translate errors of redis-py in this block into StreamOutageError and ConfigurationError.

        `key`: a key beside this stream that the commands are on.
        """
        return self._errors.translated(key or self.key)

    def memory(self) -> Memory:
        """The memory of the stream and of its server. Raises StreamOutageError, ConfigurationError."""
        with self._errors.translated(self.key):
            expect_primary(self._redis)
            memory = self._redis.info("memory")
            size = self._redis.memory_usage(self.key) or 0
            return Memory(int(cast("Any", size)), memory["used_memory"], memory.get("maxmemory") or None)

    def is_nearly_full(self) -> bool:
        """Whether the server uses 90 % of its memory limit. False if the user may not read that."""
        try:
            memory = self.memory()
        except ConfigurationError:
            return False
        return memory.limit is not None and memory.used > 0.9 * memory.limit

    def scan(self, start: bytes, count: int, end: bytes = b"+") -> Iterator[Entry]:
        """The entries from the id `start` (`b"-"`: the first) to the id `end`, read `count` at a time.

        `(` before the id `start` excludes that entry.
        """
        while True:
            with self._errors.translated(self.key):
                reply = self._redis.xrange(self.key, min=cast("Any", start), max=cast("Any", end), count=count)
            raw = cast("list[Any]", reply)
            yield from (Entry(each, [*chain.from_iterable(fields.items())]) for each, fields in raw)
            if len(raw) < count:
                return
            start = b"(" + raw[-1][0]


def _refusal(error: redis.RedisError) -> Exception:
    """The error that append_once.lua has named, or the same error."""
    name, _, value = str(error).partition(" ")
    if name == "FENCED":
        return FencedError(int(value))
    if name == "BEHIND":
        return BehindError(f"Redis has entries up to {value} only: earlier ones are appended again first")
    return error


def _encode(argument: object) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode(errors="surrogatepass")
