"""A consumer group on a stream: read, claim, acknowledge, and its backlog."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import redis

from common import rights
from common.streams.client import expect_primary
from common.streams.ids import Id, read_id
from common.streams.keys import beside
from common.streams.scripts import load_script
from common.streams.statistics import ConsumerStatistics
from common.streams.stream import Entry, Stream

#: Seconds without a read after which a consumer counts as idle. A running consumer reads every 0.5 s.
IDLE_AFTER = 3.0
#: How the errors about a stream or a group that does not exist begin.
_NOT_THERE = ("no such key", "NOGROUP")


class Backlog(NamedTuple):
    """The unfinished work of a group. `lag` counts entries that no consumer has read.

    A killed consumer stays in the group: `consumers` counts those that ask for entries, `idle` the others.
    """

    appended: int
    length: int
    lag: int
    pending: int
    consumers: int
    idle: int = 0

    @property
    def left(self) -> int:
        """Entries that the group has not stored yet: unread and pending."""
        return self.lag + self.pending


def total(backlogs: Iterable[Backlog]) -> Backlog:
    """The backlog of a group on several streams. A consumer that reads all of them counts once."""
    columns = list(zip(*backlogs, strict=True)) or [(0,)] * len(Backlog._fields)
    return Backlog(*map(sum, columns[:4]), *map(max, columns[4:]))


class Member(NamedTuple):
    """A consumer in a group: its pending entries, and the seconds since it last asked for entries."""

    name: str
    pending: int
    idle: float


class ConsumerGroup(Stream):
    """A stream with one of its consumer groups, as one consumer in it uses them."""

    def __init__(self, client: redis.Redis, key: str, group: str, consumer: str = "") -> None:
        super().__init__(client, key)
        self.group = group
        self.consumer = consumer
        self.statistics = ConsumerStatistics(client, key, self._errors)
        # Raw entries: a dict for each would cost more than its insert, and would lose one of two fields of one name.
        client.set_response_callback("XREADGROUP", _entries)
        client.set_response_callback("XAUTOCLAIM", lambda reply, **_: reply)
        self._remove_idle_consumers = load_script(client, "remove_idle_consumers")

    def check_consume(self) -> bool:
        """As `check`, with the rights of a consumer."""
        return self._errors.check_key(self.key, "stream", rights.consume(self.key, self.group, self.consumer))

    def check_replay(self) -> None:
        """Raise ConfigurationError if the user lacks a right on the keys that a replay needs."""
        database, lock = beside(self.key, "database"), beside(self.key, f"replay:{self.group}")
        self._errors.check_key(database, "hash", rights.remember(database))
        self._errors.check_key(lock, "string", rights.lock(lock))

    def ensure_group(self) -> None:
        """Create the group if it is missing. It starts at the stream's first entry."""
        with self._errors.translated(self.key):
            try:
                self._redis.xgroup_create(self.key, self.group, id="0", mkstream=True)
            except redis.ResponseError as error:
                # A full Redis refuses CREATE even if the group exists. Then reading and trimming would free memory.
                if not str(error).startswith("BUSYGROUP") and self.group not in self._info()[1]:
                    raise

    def read(self, count: int, block_ms: int | None = None, done: Sequence[bytes] = ()) -> list[Entry]:
        """Read up to `count` entries that no consumer has read. Wait up to `block_ms` for the first one.

        `done`: ids to acknowledge in the same round trip. After a StreamOutageError they may be acknowledged or not.
        """
        return self._read(b">", count, block_ms, done)

    def read_own_pending(self, count: int, after: bytes = b"0") -> list[Entry]:
        """Read up to `count` of this consumer's own pending entries, after the id `after`."""
        return self._read(after, count, None, ())

    def _read(self, start: bytes, count: int, block_ms: int | None, done: Sequence[bytes]) -> list[Entry]:
        with self._errors.translated(self.key), self._redis.pipeline(transaction=False) as pipe:
            if done:
                pipe.xack(self.key, self.group, *done)
            pipe.xreadgroup(self.group, self.consumer, {self.key: cast("Any", start)}, count=count, block=block_ms)
            return cast("list[Entry]", pipe.execute()[-1])

    def claim(self, idle_ms: int, count: int) -> Iterator[list[Entry]]:
        """Take over entries that have been pending on any consumer for `idle_ms`, in batches of up to `count`.

        Follows XAUTOCLAIM's cursor to its end, since one call looks at no more than count × 10 entries.
        """
        cursor = b"0-0"
        while True:
            with self._errors.translated(self.key):
                reply = self._redis.xautoclaim(self.key, self.group, self.consumer, idle_ms, cast("Any", cursor), count)
            cursor, entries, *_ = reply
            if entries:
                yield [Entry(*raw) for raw in entries]
            if cursor == b"0-0":
                return

    def ack(self, ids: Sequence[bytes]) -> None:
        """Acknowledge these entries."""
        if ids:
            with self._errors.translated(self.key):
                self._redis.xack(self.key, self.group, *ids)

    def leave(self) -> None:
        """Remove this consumer from the group, unless it has pending entries: removal would destroy them."""
        self.remove_idle_consumers(0, only=self.consumer)

    def remove_idle_consumers(self, idle_ms: int, *, only: str = "") -> int:
        """Remove consumers (or `only` this one) that have been idle for `idle_ms` and have no pending entries.

        Returns how many were removed.
        """
        with self._errors.translated(self.key):
            return int(cast("Any", self._remove_idle_consumers(keys=[self.key], args=[self.group, idle_ms, only])))

    def unprocessed(self, count: int = 1000) -> Iterator[Entry]:
        """The entries that this group has not acknowledged, unread or pending, oldest first; reads `count` at a time.

        An entry that is acknowledged during the scan may be missing. (The last delivered id is read before the pending
        ids, so that an entry read in between is found as unread.)
        """
        with self._errors.translated(self.key):
            ours = self._info()[1].get(self.group)
        if ours is None:
            yield from self.scan(b"-", count)
            return
        delivered = read_id(ours["last-delivered-id"])
        pending = set(self._pending_ids(count))
        start = min([delivered, *map(read_id, pending)])
        for entry in self.scan(b"%d-%d" % start, count):
            if entry.id in pending or read_id(entry.id) > delivered:
                yield entry

    def _pending_ids(self, count: int) -> Iterator[bytes]:
        start = b"-"
        while True:
            with self._errors.translated(self.key):
                reply = self._redis.xpending_range(self.key, self.group, min=cast("Any", start), max="+", count=count)
            raw = cast("list[dict[str, bytes]]", reply)
            yield from (item["message_id"] for item in raw)
            if len(raw) < count:
                return
            start = b"(" + raw[-1]["message_id"]

    def position(self) -> tuple[Id, int | None, Id | None]:
        """Of one moment: the last delivered id, how many entries were added up to it, and the oldest pending id.

        The number is None if Redis does not know it. (0, 0) and 0 if the group does not exist.
        """
        with self._errors.translated(self.key), self._redis.pipeline(transaction=True) as pipe:
            expect_primary(self._redis)
            pipe.xinfo_groups(self.key)
            pipe.xpending(self.key, self.group)
            groups, pending = cast("Any", pipe.execute(raise_on_error=False))
            for reply in (groups, pending):
                if isinstance(reply, redis.RedisError) and not str(reply).startswith(_NOT_THERE):
                    raise reply
        ours = [] if isinstance(groups, redis.RedisError) else [g for g in groups if g["name"].decode() == self.group]
        if not ours or isinstance(pending, redis.RedisError):
            return (0, 0), 0, None
        oldest = pending["min"]
        return read_id(ours[0]["last-delivered-id"]), ours[0]["entries-read"], read_id(oldest) if oldest else None

    def pending(self) -> int:
        """The number of pending entries of all consumers in the group."""
        with self._errors.translated(self.key):
            return int(cast("Any", self._redis.xpending(self.key, self.group))["pending"])

    def consumers(self) -> list[Member]:
        """The consumers in the group; none if the group does not exist."""
        with self._errors.translated(self.key):
            found = self._redis.xinfo_consumers(self.key, self.group) if self.group in self._info()[1] else []
        return [Member(each["name"].decode(), int(each["pending"]), each["idle"] / 1000) for each in found]

    def backlog(self) -> Backlog:
        """The backlog of this group. If it does not exist, every entry counts as unread."""
        if ours := self.groups().get(self.group):
            return ours
        with self._errors.translated(self.key):
            info, _ = self._info()
        return Backlog(int(info["entries-added"]), int(info["length"]), int(info["length"]), 0, 0)

    def last_id(self) -> bytes:
        """The id of the newest entry, even if it was deleted; b"0-0" if there was none yet."""
        with self._errors.translated(self.key):
            return cast("bytes", self._info()[0].get("last-generated-id", b"0-0"))

    def groups(self) -> dict[str, Backlog]:
        """The backlog of each group on the stream. The slowest group delays trimming."""
        with self._errors.translated(self.key):
            info, groups = self._info()
            idle_ms = {name: [each["idle"] for each in self._redis.xinfo_consumers(self.key, name)] for name in groups}
        idle = {name: sum(each > 1000 * IDLE_AFTER for each in found) for name, found in idle_ms.items()}
        counts = int(info["entries-added"]), int(info["length"])
        return {
            name: Backlog(*counts, self._lag(group), int(group["pending"]), len(idle_ms[name]) - idle[name], idle[name])
            for name, group in groups.items()
        }

    def _lag(self, group: Mapping[str, Any]) -> int:
        """The number of unread entries. Redis does not know it after an XDEL; then up to 1,000 are counted."""
        if group["lag"] is not None:
            return int(group["lag"])
        with self._errors.translated(self.key):
            unread = self._redis.xrange(self.key, min=cast("Any", b"(" + group["last-delivered-id"]), count=1000)
        return len(cast("list[Any]", unread))

    def _info(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Redis's information on the stream, and on each group by name. A missing stream counts as empty."""
        expect_primary(self._redis)
        if not self._redis.exists(self.key):
            return {"entries-added": 0, "length": 0}, {}
        info = self._redis.xinfo_stream(self.key)
        return info, {group["name"].decode(): group for group in self._redis.xinfo_groups(self.key)}


def _entries(reply: list[Any] | dict[bytes, Any] | None, **_: object) -> list[Entry]:
    """The entries in a raw reply to XREADGROUP on one stream.

    The reply is [[key, [[id, [name, value, …]], …]]], or a map with RESP3.
    """
    if not reply:
        return []
    found = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    return [Entry(*raw) for raw in found]
