"""Redis Streams as the pipeline uses them. What needs a real server (blocking, memory limits) is in integration/."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import fakeredis
import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.errors import ConfigurationError, OutageError, StreamOutageError, TickpipeError
from common.settings import Secret
from common.streams.client import connect
from common.streams.group import Backlog, ConsumerGroup
from common.streams.stream import Entry, Stream
from tests.unit.conftest import StreamMaker, stored


def fields(n: int) -> dict[str, str]:
    return {"seq": str(n), "symbol": "Ü"}


def seqs(entries: list[Entry]) -> list[int]:
    return [int(entry.fields[b"seq"]) for entry in entries if entry.fields]


@pytest.fixture
def stream(make_stream: StreamMaker) -> ConsumerGroup:
    """Entries 1 to 5, and a group that has read nothing."""
    stream = make_stream()
    stream.append([fields(n) for n in range(1, 6)])
    stream.ensure_group()
    return stream


# --- Consumers


def test_members_report_their_pending_entries(stream: ConsumerGroup, make_stream: StreamMaker) -> None:
    stream.read(2)
    other = make_stream(consumer="other")
    other.ack([entry.id for entry in other.read(9)])
    members = sorted(stream.consumers())
    assert [(member.name, member.pending) for member in members] == [("me", 2), ("other", 0)]
    assert all(0 <= member.idle < 5 for member in members)
    assert make_stream(key="none yet").consumers() == []
    assert make_stream(group="another").consumers() == []


# --- Append, read, ack


def test_entries_are_read_in_order_by_one_consumer_each(stream: ConsumerGroup, make_stream: StreamMaker) -> None:
    mine, others = stream.read(2), make_stream(consumer="other").read(9)
    assert (seqs(mine), seqs(others)) == ([1, 2], [3, 4, 5])
    assert mine[0].fields == {b"seq": b"1", b"symbol": "Ü".encode()}
    assert stream.read(9) == []


def test_batch_is_appended_in_one_command(
    redis_client: redis.Redis, stream: ConsumerGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so all or none; a script that Redis does not know yet, or has lost, is sent again."""
    sent: list[object] = []
    execute = redis.Redis.execute_command

    def once(client: redis.Redis, *command: Any, **options: Any) -> Any:
        sent.append(command[0])
        return execute(client, *command, **options)  # type: ignore[no-untyped-call]

    stream.append([fields(n) for n in range(6, 16)])
    monkeypatch.setattr(redis.Redis, "execute_command", once)
    stream.append([fields(n) for n in range(16, 1006)])
    assert sent == ["EVALSHA"]
    redis_client.script_flush()
    stream.append([fields(1006)])
    assert redis_client.xlen("prices") == 1006


def test_entries_with_any_fields_are_appended(redis_client: redis.Redis, stream: ConsumerGroup) -> None:
    stream.append([{"n": "1"}, {b"odd \xff": b"\x00", b"": b""}, {"n": "\ud800", "m": ""}])
    found = cast("list[Any]", redis_client.xrange("prices"))[-3:]
    assert [entry for _, entry in found] == [
        {b"n": b"1"}, {b"odd \xff": b"\x00", b"": b""}, {b"n": "\ud800".encode(errors="surrogatepass"), b"m": b""}
    ]  # fmt: skip


def test_entry_with_too_many_fields_for_the_script_is_appended(
    redis_client: redis.Redis, stream: ConsumerGroup
) -> None:
    wide = {f"field {n}": str(n) for n in range(4100)}
    before = redis_client.xlen("prices")
    stream.append([{"n": "1"}, wide, {"n": "2"}])
    found = cast("list[Any]", redis_client.xrange("prices"))[before:]
    assert [len(entry) for _, entry in found] == [1, 4100, 1]


def test_own_pending_entries_are_redelivered_until_acked(stream: ConsumerGroup, make_stream: StreamMaker) -> None:
    ids = [entry.id for entry in stream.read(3)]
    again = make_stream()  # a new process under the same name
    assert seqs(again.read_own_pending(2)) == [1, 2]
    assert seqs(again.read_own_pending(2, after=ids[1])) == [3]
    assert again.read_own_pending(2, after=ids[2]) == []
    assert make_stream(consumer="other").read_own_pending(9) == []
    stream.ack(ids[:2])
    assert (seqs(again.read_own_pending(9)), stream.pending()) == ([3], 1)
    stream.ack([])
    assert stream.pending() == 1


def test_group_starts_at_the_beginning_and_is_created_once(stream: ConsumerGroup, make_stream: StreamMaker) -> None:
    assert seqs(stream.read(2)) == [1, 2]  # appended before there was a group
    make_stream().ensure_group()
    assert seqs(stream.read(9)) == [3, 4, 5]  # not begun again
    empty = make_stream(key="none yet")
    empty.ensure_group()
    assert empty.read(9) == []


def test_all_entries_of_a_dead_consumer_are_claimed(make_stream: StreamMaker) -> None:
    stream = make_stream(consumer="heir")
    stream.append([fields(n) for n in range(1, 51)])
    stream.ensure_group()
    make_stream(consumer="dead").read(45)
    make_stream(consumer="dead too").read(9)
    assert list(stream.claim(idle_ms=60_000, count=4)) == []  # they may still live
    blocks = list(stream.claim(idle_ms=0, count=4))
    assert [seq for block in blocks for seq in seqs(block)] == [*range(1, 51)]
    assert max(len(block) for block in blocks) == 4
    assert len(stream.read_own_pending(99)) == 50


def test_an_entry_deleted_while_pending_has_no_fields(stream: ConsumerGroup, redis_client: redis.Redis) -> None:
    entries = stream.read(2)
    redis_client.xdel("prices", entries[0].id)
    assert stream.read_own_pending(9) == [Entry(entries[0].id, None), entries[1]]


# --- Looking


def test_backlog_counts_unread_and_pending_entries(stream: ConsumerGroup, make_stream: StreamMaker) -> None:
    assert make_stream("nowhere").backlog() == Backlog(0, 0, 0, 0, 0)
    assert make_stream(group="none").backlog() == Backlog(5, 5, 5, 0, 0)
    entries = stream.read(3)
    make_stream(consumer="other").read(1)
    stream.ack([entries[0].id])
    assert stream.backlog() == Backlog(appended=5, length=5, lag=1, pending=3, consumers=2)
    make_stream(group="slow").ensure_group()
    assert {name: (backlog.lag, backlog.pending) for name, backlog in stream.groups().items()} == {
        "g": (1, 3),
        "slow": (5, 0),
    }


@pytest.mark.parametrize("count", [1, 2, 100])
def test_unprocessed_counts_unread_and_pending_entries(
    stream: ConsumerGroup, make_stream: StreamMaker, count: int
) -> None:
    assert seqs(list(stream.unprocessed(count))) == [1, 2, 3, 4, 5]
    entries = stream.read(3)
    make_stream(consumer="other").read(1)
    stream.ack([entries[1].id])
    assert seqs(list(stream.unprocessed(count))) == [1, 3, 4, 5]
    assert seqs(list(make_stream(group="none").unprocessed(count))) == [1, 2, 3, 4, 5]


def test_entry_read_during_the_count_is_unprocessed(stream: ConsumerGroup, make_stream: StreamMaker) -> None:
    looking = stream.unprocessed(count=1)
    assert seqs([next(looking)]) == [1]
    make_stream(consumer="other").read(9)
    assert seqs(list(looking)) == [2, 3, 4, 5]


def test_consumers_publish_reports(stream: ConsumerGroup, make_stream: StreamMaker) -> None:
    for name, text in (("one", "1"), ("other", "ü"), ("one", "2")):
        make_stream().statistics.publish(name, text=text, at=len(text))
    assert stream.statistics.read() == {"one": {"text": "2", "at": 1}, "other": {"text": "ü", "at": 1}}


@pytest.mark.parametrize(
    "word", [b"junk", b"\xff", b"", b"[1]", b"1", b'{"stored": 1}', b'{"at": "noon"}', b"[" * 10**5]
)
def test_malformed_consumer_reports_are_pruned(stream: ConsumerGroup, redis_client: redis.Redis, word: bytes) -> None:
    stream.statistics.publish(stream.consumer, stored=1, at=5)
    redis_client.hset("{prices}:consumers", "odd", word)
    redis_client.hset("{prices}:consumers", b"\xff", word)
    assert {name: told["at"] for name, told in stream.statistics.read().items()} == {
        stream.consumer: 5,
        "odd": 0,
        "\ufffd": 0,
    }
    assert stream.statistics.prune(before=5) == 2
    assert set(stream.statistics.read()) == {stream.consumer, ""}
    assert stream.statistics.prune(before=6) == 1
    assert stream.statistics.read() == {"": {"stored": 1, "duplicates": 0, "dead_letters": 0, "batches": 0, "at": 5}}


def test_sum_of_old_reports_loses_nothing(stream: ConsumerGroup) -> None:
    now = 1_795_740_000_123_456  # microseconds: all digits are kept
    for number in range(1, 11):
        stream.statistics.publish(f"c{number}", stored=number, dead_letters=1, latency_p50=None, at=now + number)
    for before in (now + 4, now + 4, now + 8):
        stream.statistics.prune(before)
    found = stream.statistics.read()
    assert set(found) == {"", "c8", "c9", "c10"}
    assert (found[""]["stored"], found[""]["dead_letters"], found[""]["at"]) == (28, 7, now + 7)
    assert sum(report["stored"] for report in found.values()) == 55


def test_key_of_another_type_is_a_configuration_error(stream: ConsumerGroup, redis_client: redis.Redis) -> None:
    stream.check()
    Stream(redis_client, "none yet").check()
    redis_client.set("text", "1")
    with pytest.raises(ConfigurationError, match="'text' in this Redis is a string, not a stream"):
        Stream(redis_client, "text").check()


# --- Consumers that go


def test_consumer_leaves_only_without_pending_entries(stream: ConsumerGroup, make_stream: StreamMaker) -> None:
    ids = [entry.id for entry in stream.read(2)]
    make_stream(consumer="other").read(1)
    stream.leave()
    assert stream.backlog().consumers == 2
    assert stream.pending() == 3  # leaving destroys nothing
    stream.ack(ids)
    stream.leave()
    assert (stream.backlog().consumers, stream.pending()) == (1, 1)
    stream.leave()  # gone already


def test_only_idle_consumers_without_pending_entries_are_removed(
    stream: ConsumerGroup, make_stream: StreamMaker
) -> None:
    stream.ack([entry.id for entry in stream.read(1)])
    make_stream(consumer="holder").read(1)
    assert stream.remove_idle_consumers(idle_ms=60_000) == 0
    assert stream.remove_idle_consumers(idle_ms=0) == 1
    assert (stream.backlog().consumers, stream.pending()) == (1, 1)


# --- Trimming


@pytest.mark.parametrize(
    ("last_read", "acked", "kept"),
    [
        (2, [], ["9-0", "9-9", "9-10", "10-0", "100-0"]),  # the oldest pending entry stops it
        (3, ["9-0", "9-9"], ["9-10", "10-0", "100-0"]),
        (4, ["9-0", "9-9", "9-10"], ["10-0", "100-0"]),  # as text, 10-0 comes before 9-0
        (5, ["9-9", "9-10", "10-0", "100-0"], ["9-0", "9-9", "9-10", "10-0", "100-0"]),
        (5, ["9-0", "9-9", "9-10", "10-0", "100-0"], ["100-0"]),  # the last one read marks the place
        (0, [], ["9-0", "9-9", "9-10", "10-0", "100-0"]),
    ],
)
def test_ids_are_compared_as_numbers(
    redis_client: redis.Redis, make_stream: StreamMaker, last_read: int, acked: list[str], kept: list[str]
) -> None:
    stream = make_stream()
    for entry_id in ("9-0", "9-9", "9-10", "10-0", "100-0"):
        redis_client.xadd("prices", {"seq": "1"}, id=entry_id)
    stream.ensure_group()
    if last_read:
        stream.read(last_read)
    stream.ack([entry_id.encode() for entry_id in acked])
    assert stream.trim() == 5 - len(kept)
    assert [entry_id.decode() for entry_id, _ in stored(redis_client)] == kept


def test_lagging_group_prevents_trimming(stream: ConsumerGroup, make_stream: StreamMaker) -> None:
    stream.ack([entry.id for entry in stream.read(9)])
    slow = make_stream(group="slow")
    slow.ensure_group()
    assert stream.trim() == 0
    slow.ack([entry.id for entry in slow.read(3)])
    assert stream.trim() == 2
    assert seqs(list(make_stream(group="none").unprocessed())) == [3, 4, 5]


def test_nothing_is_trimmed_without_a_group_or_stream(make_stream: StreamMaker) -> None:
    stream = make_stream()
    assert stream.trim() == 0
    stream.append([fields(1)])
    assert stream.trim() == 0


GROUPS = st.sampled_from(["a", "b"])


class Trimming(RuleBasedStateMachine):
    """Two groups append, read, ack and trim in any order: what any of them still needs is never trimmed."""

    def __init__(self) -> None:
        super().__init__()
        self.client = fakeredis.FakeStrictRedis(protocol=2)
        self.last = (8, 0)
        self.appended: list[tuple[int, int]] = []
        self.streams = {name: ConsumerGroup(self.client, "prices", name, f"consumer of {name}") for name in "ab"}
        self.read = dict.fromkeys("ab", 0)  # how many entries
        self.pending: dict[str, set[tuple[int, int]]] = {"a": set(), "b": set()}
        for stream in self.streams.values():
            stream.ensure_group()

    @rule(milliseconds=st.integers(0, 60), number=st.integers(1, 30))
    def append(self, milliseconds: int, number: int) -> None:
        self.last = (self.last[0] + milliseconds, number if milliseconds else self.last[1] + number)
        self.client.xadd("prices", {"seq": "1"}, id="{}-{}".format(*self.last))
        self.appended.append(self.last)

    @rule(group=GROUPS, count=st.integers(1, 4))
    def deliver(self, group: str, count: int) -> None:
        got = [_numbers(entry.id) for entry in self.streams[group].read(count)]
        assert got == self.appended[self.read[group] : self.read[group] + count]
        self.read[group] += len(got)
        self.pending[group] |= set(got)

    @precondition(lambda self: self.pending["a"] or self.pending["b"])
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        group, entry = data.draw(st.sampled_from(sorted((g, e) for g, es in self.pending.items() for e in es)))
        self.streams[group].ack(["{}-{}".format(*entry).encode()])
        self.pending[group].discard(entry)

    @rule(group=GROUPS)
    def trim(self, group: str) -> None:
        self.streams[group].trim()
        kept = [_numbers(entry_id) for entry_id, _ in stored(self.client)]
        keep_from = min((self._needed(name) for name in "ab"), default=(0, 0))
        assert kept == [entry for entry in self.appended if entry >= keep_from]

    @invariant()
    def nothing_undone_is_gone(self) -> None:
        kept = {_numbers(entry_id) for entry_id, _ in stored(self.client)}
        for name in "ab":
            needed = self.pending[name] | set(self.appended[self.read[name] :])
            assert needed <= kept
            assert [_numbers(entry.id) for entry in self.streams[name].unprocessed(3)] == sorted(needed)

    def _needed(self, name: str) -> tuple[int, int]:
        last_read = self.appended[self.read[name] - 1] if self.read[name] else (0, 0)
        return min([last_read, *self.pending[name]])


def _numbers(entry_id: bytes) -> tuple[int, int]:
    first, _, second = entry_id.decode().partition("-")
    return int(first), int(second)


TestTrimming = Trimming.TestCase
TestTrimming.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


# --- Errors


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (redis.ConnectionError("Connection refused"), StreamOutageError),
        (redis.TimeoutError(), StreamOutageError),
        (redis.BusyLoadingError(), StreamOutageError),
        (redis.ReadOnlyError(), StreamOutageError),
        (redis.OutOfMemoryError(), StreamOutageError),
        (redis.ResponseError("NOGROUP No such key"), StreamOutageError),
        (redis.ResponseError("MISCONF Redis is configured to save RDB snapshots"), StreamOutageError),
        (redis.exceptions.MasterDownError("Link with MASTER is down"), StreamOutageError),
        (redis.exceptions.ClusterDownError("The cluster is down"), StreamOutageError),
        (redis.exceptions.AskError("1 127.0.0.1:6379"), StreamOutageError),
        (redis.AuthenticationError("WRONGPASS"), ConfigurationError),
        (redis.exceptions.NoPermissionError("no permissions"), ConfigurationError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_are_outages_or_configuration_errors(
    stream: ConsumerGroup, monkeypatch: pytest.MonkeyPatch, error: redis.RedisError, expected: type[TickpipeError]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(redis.Redis, "execute_command", fail)
    monkeypatch.setattr(redis.client.Pipeline, "execute", fail)
    monkeypatch.setattr(redis.commands.core.Script, "__call__", fail)
    calls: list[Callable[[], object]] = [
        stream.check,
        stream.check_append,
        stream.check_consume,
        stream.statistics.check,
        stream.ensure_group,
        stream.trim,
        stream.leave,
        stream.pending,
        stream.backlog,
        stream.groups,
        stream.statistics.read,
        lambda: stream.append([fields(1)]),
        lambda: stream.read(1),
        lambda: stream.read_own_pending(1),
        lambda: stream.ack([b"1-0"]),
        lambda: list(stream.claim(0, 1)),
        lambda: list(stream.unprocessed()),
        lambda: stream.statistics.publish(stream.consumer, at=1),
        lambda: stream.remove_idle_consumers(0),
    ]
    for call in calls:
        with pytest.raises(expected) as caught:
            call()
        assert isinstance(caught.value, OutageError) == (expected is StreamOutageError)
        assert len(str(caught.value)) > len("Redis: ")


REFUSALS = [
    "READONLY You can't write against a read only replica.",
    "ERR Error running script (call to f_1): @user_script:5: -READONLY You can't write against a read only replica.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "LOADING Redis is loading the dataset in memory",
    "NOREPLICAS Not enough good replicas to write.",
    "CLUSTERDOWN Hash slot not served",
    "MOVED 1 127.0.0.1:6379",
    "ASK 1 127.0.0.1:6379",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "NOPERM this user has no permissions to run the 'xadd' command",
]


@pytest.fixture
def refusing_redis() -> Iterator[RefusingRedis]:
    with RefusingRedis() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class RefusingRedis(socketserver.ThreadingTCPServer):
    """Answers every command with the same error (CLIENT, sent at each connect, with OK) and counts its connections."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Refusing)
        self.error = ""
        self.connections = 0

    @property
    def url(self) -> Secret:
        return Secret(f"redis://127.0.0.1:{self.server_address[1]}/0")


class Refusing(socketserver.StreamRequestHandler):
    """One connection."""

    def handle(self) -> None:
        assert isinstance(self.server, RefusingRedis)
        self.server.connections += 1
        while line := self.rfile.readline():
            if line.startswith(b"*"):  # a command: an array of strings, each its length and itself
                words = [self.rfile.read(int(self.rfile.readline()[1:]) + 2).strip() for _ in range(int(line[1:]))]
                self.wfile.write(b"+OK\r\n" if words[0] == b"CLIENT" else b"-%s\r\n" % self.server.error.encode())


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.split()[0])
def test_address_is_resolved_again_after_any_error(refusing_redis: RefusingRedis, error: str) -> None:
    """The node may have been demoted: whatever it says, another one may be at the address by now."""
    refusing_redis.error = error
    client = connect(refusing_redis.url, "prices")
    stream = ConsumerGroup(client, "prices", "g", "me")
    calls: list[Callable[[], object]] = [
        lambda: stream.append([fields(1)]),
        lambda: stream.read(1),
        stream.backlog,
        lambda: stream.statistics.publish(stream.consumer, at=1),
    ]
    for number, call in enumerate(calls, 1):
        with pytest.raises(TickpipeError):
            call()
        assert refusing_redis.connections == number
    client.close()


def test_moved_key_is_a_configuration_error_until_first_success(
    stream: ConsumerGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster of one shard works, and a failover within it is an outage. Each key counts for itself."""

    def moved(*_: object, **__: object) -> None:
        raise redis.exceptions.MovedError("1 127.0.0.1:6379")

    assert stream.check()
    monkeypatch.setattr(redis.client.Pipeline, "execute", moved)
    with pytest.raises(StreamOutageError, match="this node is not the primary"):
        stream.check()
    with pytest.raises(ConfigurationError, match=r"one node of a Redis Cluster, and the key '\{prices\}:consumers'"):
        stream.statistics.check()


def test_lost_group_is_an_outage_until_recreated(stream: ConsumerGroup, redis_client: redis.Redis) -> None:
    redis_client.xgroup_destroy("prices", "g")
    with pytest.raises(StreamOutageError):
        stream.read(1)
    stream.ensure_group()
    assert seqs(stream.read(9)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost",
        "redis://:p4ss/word@localhost:6379/0",
        "redis://:p4ss@localhost:none/0",
        "redis://:p4ss@localhost:99999/0",
        "redis://:p4ss@localhost/0?db=x",
        "redis://:p4ss@localhost/0?nonsense=1",
        "rediss://:p4ss@localhost/0?ssl_cert_reqs=nonsense",
        "redis://[::1",
    ],
)
def test_invalid_url_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL is not a Redis URL") as caught:
        connect(Secret(url), "prices")
    assert "p4ss" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://localhost", "rediss://u:p@h:6380/1", "unix:///run/redis.sock?db=2", "redis://h/0?health_check_interval=9"]
)  # fmt: skip
def test_valid_url_does_not_connect_yet(url: str) -> None:
    before = threading.active_count()
    connect(Secret(url), "prices").close()
    assert threading.active_count() == before


def test_last_id_is_that_of_the_newest_entry(make_stream: StreamMaker) -> None:
    stream = make_stream()
    assert stream.last_id() == b"0-0"
    stream.append([{"seq": "1"}])
    (entry,) = stream.scan(b"-", 9)
    assert stream.last_id() == entry.id
