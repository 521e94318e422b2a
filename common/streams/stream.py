"""The one file that speaks Redis Streams: append, read, claim, ack, trim, lag.

A `Stream` is one key and one consumer group on it. Every error of Redis leaves here as a StreamOutageError (worth a
retry) or a ConfigurationError (needs a person). Every error closes the client's connections, so that the next try
looks up the address in REDIS_URL again: after a failover the old node still answers. Never one command or one
transaction over two keys, so that streams may be spread over a Redis Cluster one day.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any, NamedTuple, cast

import redis
from redis.exceptions import MovedError, NoPermissionError

from common import rights, tls
from common.errors import ConfigurationError, StreamOutageError, TickpipeError, UntrustedError
from common.streams.client import NOT_PRIMARY, expect_primary, look_up_again

Fields = Mapping[str, str] | Mapping[bytes, bytes]
#: A living consumer asks for more every 0.5 s. One that has not for so many seconds is gone, or stuck in a block.
SILENT_AFTER = 3.0
#: Most fields of an entry that the script takes: Lua's unpack() gives up below 8,000 values, with the others written.
MAX_FIELDS = 3500


class Entry(NamedTuple):
    """A stream entry as Redis gave it: its names and values in turn; None where it was deleted while pending."""

    id: bytes
    parts: Sequence[bytes] | None

    @property
    def fields(self) -> dict[bytes, bytes] | None:
        """Its values by their names."""
        return None if self.parts is None else dict(zip(self.parts[::2], self.parts[1::2], strict=True))


class Backlog(NamedTuple):
    """What a stream holds for one group; `lag` counts the entries that nobody has read.

    A name stays in the group when its consumer is killed: `consumers` are those that ask for more, the others `silent`.
    """

    appended: int
    length: int
    lag: int
    pending: int
    consumers: int
    silent: int = 0


class Member(NamedTuple):
    """A consumer in a group: entries it was given and has not acked, seconds since it last asked for any."""

    name: str
    pending: int
    idle: float


class Stream:
    """One stream, and one consumer's place in one group on it."""

    def __init__(self, client: redis.Redis, key: str, group: str = "", consumer: str = "") -> None:
        self.key = key
        self.group = group
        self.consumer = consumer
        self._reports = f"{key}:consumers"
        self._redis = client
        self._tls = issubclass(client.connection_pool.connection_class, redis.SSLConnection)
        self._answered: set[str] = set()  # keys of which Redis has answered a command, ever
        # Entries as they are: a dict for each would cost more than its insert, and of a name that comes twice lose one.
        client.set_response_callback("XREADGROUP", _entries)
        client.set_response_callback("XAUTOCLAIM", lambda reply, **_: reply)
        self._append = client.register_script(_APPEND)
        self._remove = client.register_script(_REMOVE_CONSUMERS)
        self._trim = client.register_script(_TRIM)

    @contextmanager
    def _translated(self, key: str = "") -> Iterator[None]:
        """Redis's errors as ours, told apart by class. `key`: the one that the commands use, if not the stream's."""
        key = key or self.key
        try:
            yield
            self._answered.add(key)
        except redis.RedisError as error:
            look_up_again(self._redis)
            raise self._trouble(error, key) from error

    def _trouble(self, error: redis.RedisError, key: str) -> TickpipeError:
        """What TLS or a cluster refuses at the start needs a person; later, a server may heal without us."""
        if isinstance(error, redis.AuthenticationError):
            return ConfigurationError(f"Redis refuses the login in REDIS_URL: {error}")
        if isinstance(error, NoPermissionError):
            return ConfigurationError(f"Redis refuses a right on the key {key!r}: {error}. Grant it by ACL SETUSER")
        if isinstance(error, MovedError) and key not in self._answered:
            return ConfigurationError(
                f"REDIS_URL names one node of a Redis Cluster, and the key {key!r} is on another node: MOVED {error}. "
                "Use a Redis or Valkey that is not a cluster"
            )
        cause, words = error.__context__, f"Redis: {str(error) or type(error).__name__}"
        refusal = tls.refusal(cause)
        if self._tls and isinstance(cause, FileNotFoundError | PermissionError | IsADirectoryError):
            refusal = f"a file of certificates cannot be read: {cause.strerror}"
        if refusal:
            words = (
                f"Redis: {refusal}; REDIS_URL is rediss://HOST:PORT/0?ssl_ca_certs=FILE, with the host that the "
                "certificate was made for, and the file of the CA that signed it"
            )
        elif not self._answered and (tls.may_be_the_scheme(cause, by_tls=self._tls) or "closed by server" in words):
            words += tls.hint("REDIS_URL", "redis", "rediss", by_tls=self._tls)
        elif isinstance(error, redis.ConnectionError | redis.TimeoutError):
            words += " (REDIS_URL)"
        elif isinstance(error, NOT_PRIMARY):
            words += "; this node is not the primary: the next try looks up the address in REDIS_URL again"
        elif "WRONGTYPE" in words:
            words = f"Redis: the key {key!r} has another type than it should: rename or delete it"
        return UntrustedError(words) if refusal and not self._answered else StreamOutageError(words)

    def check(self) -> bool:
        """Ask Redis, which may be away or not let us in, whether the stream is there.

        Raises ConfigurationError where the key is something else, or the user lacks a right.
        """
        return self._check(self.key, "stream", {})

    def check_append(self) -> bool:
        """The same for a producer, with every right that it needs on the stream."""
        return self._check(self.key, "stream", rights.append(self.key))

    def check_consume(self) -> bool:
        """The same for a consumer, with every right that it needs on the stream."""
        return self._check(self.key, "stream", rights.consume(self.key, self.group, self.consumer))

    def check_reports(self) -> bool:
        """The same for the hash of the consumers' statistics."""
        return self._check(self._reports, "hash", rights.report(self._reports))

    def _check(self, key: str, kind: str, commands: rights.Commands) -> bool:
        """Whether the key is there. Only TYPE may fail otherwise than for a missing right: the rest is made to fail."""
        commands = {**rights.look(key), **commands}
        with self._translated(key), self._redis.pipeline(transaction=False) as pipe:
            expect_primary(self._redis)
            for command in commands.values():
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            replies = dict(zip(commands, pipe.execute(raise_on_error=False), strict=True))
            refused = {right: reply for right, reply in replies.items() if _refused(reply)}
            if not refused and isinstance(replies["type"], redis.RedisError):
                raise replies["type"]
        if refused:
            raise ConfigurationError(
                f"Redis refuses {', '.join(refused)} on the key {key!r}: {next(iter(refused.values()))}. Grant it to "
                f"the user in REDIS_URL: ACL SETUSER USER ~{key} {' '.join(f'+{right}' for right in refused)}"
            )
        found = cast("bytes", replies["type"]).decode()
        if found not in {kind, "none"}:
            raise ConfigurationError(
                f"the key {key!r} in this Redis is a {found}, not a {kind}: rename or delete it, or choose another "
                "--price-stream"
            )
        return found == kind

    def append(self, entries: Sequence[Fields]) -> None:
        """Append the entries, all or none, in one round trip. After a StreamOutageError they may stand there or not.

        A lone surrogate, which JSON can spell and UTF-8 cannot, is written as its bytes and refused at decoding.
        """
        self.append_parts([list(chain.from_iterable(cast("Any", fields.items()))) for fields in entries])

    def append_parts(self, entries: Sequence[Sequence[str | bytes]]) -> None:
        """The same for entries as names and values in turn, where a name may come twice."""
        if any(not 0 < len(parts) <= 2 * MAX_FIELDS for parts in entries):
            self._append_slowly(entries)
            return
        arguments: list[Any] = []
        for parts in entries:
            arguments.append(len(parts))
            arguments.extend(parts)
        with self._translated():
            try:
                self._append(keys=[self.key], args=arguments)
            except UnicodeEncodeError:  # before anything was sent: hiredis packs strict UTF-8, whatever our settings
                self._append(keys=[self.key], args=[_bytes(argument) for argument in arguments])

    def _append_slowly(self, entries: Sequence[Sequence[str | bytes]]) -> None:
        with self._translated(), self._redis.pipeline(transaction=True) as pipe:
            for parts in entries:
                pipe.execute_command("XADD", self.key, "*", *map(_bytes, parts))  # type: ignore[no-untyped-call]
            pipe.execute()

    def ensure_group(self) -> None:
        """Create the group where it is missing, at the stream's start: at `$` it would skip what came before it."""
        with self._translated():
            try:
                self._redis.xgroup_create(self.key, self.group, id="0", mkstream=True)
            except redis.ResponseError as error:
                # A full Redis refuses CREATE before it looks whether the group is there; reading would make room.
                if not str(error).startswith("BUSYGROUP") and self.group not in self._info()[1]:
                    raise

    def _info(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """What Redis says of the stream, and of each group by its name; a stream that is not there is empty."""
        expect_primary(self._redis)
        if not self._redis.exists(self.key):
            return {"entries-added": 0, "length": 0}, {}
        info = self._redis.xinfo_stream(self.key)
        return info, {group["name"].decode(): group for group in self._redis.xinfo_groups(self.key)}

    def read(self, count: int, block_ms: int | None = None, done: Sequence[bytes] = ()) -> list[Entry]:
        """Up to `count` entries that nobody in the group has read; waits up to `block_ms` for the first of them.

        `done`: entries to ack, in the same round trip. After a StreamOutageError they may be acked or not.
        """
        return self._read_group(b">", count, block_ms, done)

    def read_own_pending(self, count: int, after: bytes = b"0") -> list[Entry]:
        """Up to `count` entries after the id `after` that this consumer's name was given and never acked."""
        return self._read_group(after, count, None, ())

    def _read_group(self, start: bytes, count: int, block_ms: int | None, done: Sequence[bytes]) -> list[Entry]:
        with self._translated(), self._redis.pipeline(transaction=False) as pipe:
            if done:
                pipe.xack(self.key, self.group, *done)
            pipe.xreadgroup(self.group, self.consumer, {self.key: cast("Any", start)}, count=count, block=block_ms)
            return cast("list[Entry]", pipe.execute()[-1])

    def claim(self, idle_ms: int, count: int) -> Iterator[list[Entry]]:
        """Blocks of entries that any consumer was given and left unacked for `idle_ms`, now this one's.

        Follows XAUTOCLAIM's cursor to its end: one call looks at count × 10 entries only, and the tail would starve.
        """
        cursor = b"0-0"
        while True:
            with self._translated():
                reply = self._redis.xautoclaim(self.key, self.group, self.consumer, idle_ms, cast("Any", cursor), count)
            cursor, entries, *_ = reply
            if entries:
                yield [Entry(*raw) for raw in entries]
            if cursor == b"0-0":
                return

    def ack(self, ids: Sequence[bytes]) -> None:
        """Tell the group that these entries are done."""
        if ids:
            with self._translated():
                self._redis.xack(self.key, self.group, *ids)

    def report(self, **word: object) -> None:
        """Leave this consumer's word on its work, for whoever looks at the pipeline; `at` is when, microseconds UTC."""
        with self._translated(self._reports):
            self._redis.hset(self._reports, self.consumer, json.dumps(word))

    def reports(self) -> dict[str, dict[str, Any]]:
        """The last word of each consumer, gone ones too. What is no such word counts as one of 1970."""
        with self._translated(self._reports):
            found = cast("dict[bytes, bytes]", self._redis.hgetall(self._reports))
        return {name.decode(errors="replace"): _word(text) for name, text in found.items()}

    def consumers(self) -> list[Member]:
        """Who is in the group; nobody where there is none."""
        with self._translated():
            found = self._redis.xinfo_consumers(self.key, self.group) if self.group in self._info()[1] else []
        return [Member(each["name"].decode(), int(each["pending"]), each["idle"] / 1000) for each in found]

    def forget_reports(self, before: int) -> None:
        """Remove the words left before then, microseconds UTC."""
        if old := [name for name, word in self.reports().items() if word["at"] < before]:
            with self._translated(self._reports):
                self._redis.hdel(self._reports, *old)

    def leave(self) -> None:
        """Take this consumer's name off the group, unless entries are pending on it: those would be destroyed."""
        self.remove_idle_consumers(0, only=self.consumer)

    def remove_idle_consumers(self, idle_ms: int, *, only: str = "") -> int:
        """Take off the names, or `only` this one, that hold nothing and have been idle for `idle_ms`: how many."""
        with self._translated():
            return int(cast("Any", self._remove(keys=[self.key], args=[self.group, idle_ms, only])))

    def trim(self) -> int:
        """Drop what every group on the stream has read and acked; returns how many entries went."""
        with self._translated():
            return int(cast("Any", self._trim(keys=[self.key])))

    def unprocessed(self, count: int = 1000) -> Iterator[Entry]:
        """The entries this group has not acked, oldest first: unread, or pending on somebody.

        What is done meanwhile may be in it or not; what is not done is. (Last delivered is read before the pending
        ones: an entry that is read in between is met as unread.)
        """
        with self._translated():
            ours = self._info()[1].get(self.group)
        if ours is None:
            yield from self._scan(b"-", count)
            return
        delivered = _number(ours["last-delivered-id"])
        pending = set(self._pending_ids(count))
        start = min([delivered, *map(_number, pending)])
        for entry in self._scan(b"%d-%d" % start, count):
            if entry.id in pending or _number(entry.id) > delivered:
                yield entry

    def _pending_ids(self, count: int) -> Iterator[bytes]:
        start = b"-"
        while True:
            with self._translated():
                reply = self._redis.xpending_range(self.key, self.group, min=cast("Any", start), max="+", count=count)
            raw = cast("list[dict[str, bytes]]", reply)
            yield from (item["message_id"] for item in raw)
            if len(raw) < count:
                return
            start = b"(" + raw[-1]["message_id"]

    def _scan(self, start: bytes, count: int) -> Iterator[Entry]:
        while True:
            with self._translated():
                raw = cast("list[Any]", self._redis.xrange(self.key, min=cast("Any", start), count=count))
            yield from (Entry(each, [*chain.from_iterable(fields.items())]) for each, fields in raw)
            if len(raw) < count:
                return
            start = b"(" + raw[-1][0]

    def groups(self) -> dict[str, Backlog]:
        """Every group on the stream and what it has left to do: the slowest holds back trimming."""
        with self._translated():
            info, groups = self._info()
            idle = {name: [each["idle"] for each in self._redis.xinfo_consumers(self.key, name)] for name in groups}
        silent = {name: sum(each > 1000 * SILENT_AFTER for each in found) for name, found in idle.items()}
        read = int(info["entries-added"]), int(info["length"])
        return {
            name: Backlog(*read, self._lag(group), int(group["pending"]), len(idle[name]) - silent[name], silent[name])
            for name, group in groups.items()
        }

    def _lag(self, group: Mapping[str, Any]) -> int:
        """Entries that nobody has read; Redis cannot tell after an XDEL, then up to 1000 are counted."""
        if group["lag"] is not None:
            return int(group["lag"])
        with self._translated():
            unread = self._redis.xrange(self.key, min=cast("Any", b"(" + group["last-delivered-id"]), count=1000)
        return len(cast("list[Any]", unread))

    def pending(self) -> int:
        """Entries that the group's consumers, all of them, were given and have not acked."""
        with self._translated():
            return int(cast("Any", self._redis.xpending(self.key, self.group))["pending"])

    def backlog(self) -> Backlog:
        """What the stream holds and what this group has left to do."""
        if ours := self.groups().get(self.group):
            return ours
        with self._translated():
            info, _ = self._info()
        return Backlog(int(info["entries-added"]), int(info["length"]), int(info["length"]), 0, 0)


def _refused(reply: object) -> bool:
    """Whether the user may not send this command, or the server does not know it."""
    return isinstance(reply, NoPermissionError) or (
        isinstance(reply, redis.ResponseError) and str(reply).startswith("unknown command")
    )


def _number(entry_id: bytes) -> tuple[int, int]:
    """An entry's id as the two numbers it is: as text, 9-0 would come after 10-0."""
    milliseconds, _, sequence = entry_id.partition(b"-")
    return int(milliseconds), int(sequence)


def _word(text: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):  # nothing rests on it, so nobody may fall over it
        if isinstance(word := json.loads(text), dict) and isinstance(word.get("at"), int):
            return word
    return {"at": 0}


def _bytes(argument: object) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode(errors="surrogatepass")


def _entries(reply: list[Any] | dict[bytes, Any] | None, **_: object) -> list[Entry]:
    """The entries in a raw reply to XREADGROUP on one stream: [[key, [[id, [name, value, …]], …]]], or RESP3's map."""
    if not reply:
        return []
    found = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    return [Entry(*raw) for raw in found]


# One script instead of so many XADDs between MULTI and EXEC: one command to pack and one reply to read is half of the
# client's work. ARGV: the number of an entry's names and values, these, the next entry's number …
_APPEND = """
local at = 1
while at < #ARGV do
  local last = at + tonumber(ARGV[at])
  redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, last))
  at = last + 1
end
"""

# One script, because checking and then deleting races: another consumer of that name may read in between, and
# DELCONSUMER destroys what it was just given.
_REMOVE_CONSUMERS = """
local removed = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #info, 2 do consumer[info[i]] = info[i + 1] end
  if consumer.pending == 0 and consumer.idle >= tonumber(ARGV[2]) and (ARGV[3] == '' or consumer.name == ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    removed = removed + 1
  end
end
return removed
"""

# One script, because an entry may be read between looking at the oldest pending and at the last delivered one.
# Ids are compared as numbers: by length first, since they have no leading zeros and exceed a Lua number.
_TRIM = """
local function before(a, b)
  local a1, a2 = string.match(a, '(%d+)-(%d+)')
  local b1, b2 = string.match(b, '(%d+)-(%d+)')
  if a1 == b1 then a1, b1 = a2, b2 end
  if #a1 ~= #b1 then return #a1 < #b1 end
  return a1 < b1
end
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local keep = nil
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #info, 2 do group[info[i]] = info[i + 1] end
  local oldest = redis.call('XPENDING', KEYS[1], group.name)[2]
  local needed = group['last-delivered-id']
  if oldest and before(oldest, needed) then needed = oldest end
  if not keep or before(needed, keep) then keep = needed end
end
if not keep then return 0 end
return redis.call('XTRIM', KEYS[1], 'MINID', keep)
"""
