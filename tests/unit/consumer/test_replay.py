"""A consumer stores the streams again when it meets another database, and continues a replay that was interrupted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast

import pytest
from redis.lock import Lock

from common.errors import DatabaseOutageError, StreamOutageError
from common.streams.group import ConsumerGroup
from common.streams.stream import Entry
from consumer.replay import Replayer, Route
from consumer.tables import FEED, PRICES, TableWriter
from consumer.writer import Stored, Writer
from tests.unit.conftest import StreamMaker

COUNT = 10


class Server:
    """A database with a timeline. Keeps the numbers of the entries that it is given, by stream."""

    def __init__(self) -> None:
        self.timeline: str | None = "one"
        self.seqs: dict[str, list[int]] = {"prices": [], "prices:feed": []}
        self.fails_after: int | None = None  # this many batches

    def insert_batch(self, table: TableWriter, stream: str, entries: Sequence[Entry]) -> Stored:
        assert len(entries) <= COUNT
        assert table is (FEED if stream.endswith(":feed") else PRICES)
        if self.fails_after is not None:
            if self.fails_after == 0:
                raise DatabaseOutageError("the database is gone")
            self.fails_after -= 1
        self.seqs[stream] += [int(entry.fields[b"seq"]) for entry in entries if entry.fields]
        return Stored(len(entries), 0, 0)

    def fail_over(self, timeline: str) -> None:
        """Promote a standby that has nothing."""
        self.timeline = timeline
        for seqs in self.seqs.values():
            seqs.clear()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def prices(make_stream: StreamMaker) -> ConsumerGroup:
    stream = make_stream()
    stream.append([{"seq": str(number)} for number in range(1, 36)])
    make_stream("prices:feed").append([{"seq": "1"}, {"seq": "2"}])
    return stream


def replayer(make_stream: StreamMaker, server: Server, stop: threading.Event | None = None) -> Replayer:
    """As in another process: with its own clients."""
    routes = [Route(make_stream("prices"), PRICES), Route(make_stream("prices:feed"), FEED)]
    return Replayer(routes, cast("Writer", server), lambda: server.timeline, COUNT, stop or threading.Event())


def has_everything(server: Server) -> bool:
    return server.seqs == {"prices": [*range(1, 36)], "prices:feed": [1, 2]}


@pytest.mark.usefixtures("prices")
def test_database_that_the_group_knows_is_not_filled_again(make_stream: StreamMaker, server: Server) -> None:
    for _ in range(2):
        consumer = replayer(make_stream, server)
        assert consumer.check()
        assert consumer.check()
    assert server.seqs == {"prices": [], "prices:feed": []}


@pytest.mark.usefixtures("prices")
@pytest.mark.parametrize("restarted", [False, True], ids=["while it runs", "between two starts"])
def test_other_timeline_is_filled_from_both_streams_once(
    make_stream: StreamMaker, server: Server, restarted: bool
) -> None:
    consumer = replayer(make_stream, server)
    consumer.check()
    server.fail_over("two")
    if restarted:
        consumer = replayer(make_stream, server)
    assert consumer.check()
    assert has_everything(server)
    assert consumer.check()
    assert replayer(make_stream, server).check()
    assert has_everything(server)


def test_timeline_that_redis_lost_is_remembered_again(
    make_stream: StreamMaker, prices: ConsumerGroup, server: Server
) -> None:
    """Redis failed over to a replica that did not have it yet."""
    consumer = replayer(make_stream, server)
    consumer.check()
    prices.remember("database", "g", "an older one")
    assert consumer.check()
    assert prices.recall("database", "g") == "one"
    assert server.seqs["prices"] == []


@pytest.mark.usefixtures("prices")
def test_unknown_timeline_changes_nothing(make_stream: StreamMaker, server: Server) -> None:
    """A role without the right to read it has no automatic replay."""
    consumer = replayer(make_stream, server)
    consumer.check()
    server.fail_over("two")
    server.timeline = None
    assert consumer.check()
    assert server.seqs["prices"] == []


@pytest.mark.usefixtures("prices")
def test_stopped_replay_is_continued_by_another_consumer(make_stream: StreamMaker, server: Server) -> None:
    stop = threading.Event()
    consumer = replayer(make_stream, server, stop)
    consumer.check()
    server.fail_over("two")
    assert not consumer.check(on_batch=stop.set)
    assert server.seqs["prices"] == [*range(1, COUNT + 1)]
    assert replayer(make_stream, server).check()
    assert has_everything(server)


def interrupted(make_stream: StreamMaker, server: Server) -> Replayer:
    """A consumer whose replay after a failover has met an outage."""
    consumer = replayer(make_stream, server)
    consumer.check()
    server.fail_over("two")
    server.fails_after = 2
    with pytest.raises(DatabaseOutageError):
        consumer.check()
    return consumer


@pytest.mark.usefixtures("prices")
def test_replay_continues_after_an_outage(make_stream: StreamMaker, server: Server) -> None:
    consumer = interrupted(make_stream, server)
    assert server.seqs["prices"] == [*range(1, 2 * COUNT + 1)]
    server.fails_after = None
    assert consumer.check()
    assert has_everything(server)


@pytest.mark.usefixtures("prices")
def test_replay_that_a_second_failover_interrupts_begins_again(make_stream: StreamMaker, server: Server) -> None:
    consumer = interrupted(make_stream, server)
    server.fails_after = None
    server.fail_over("three")
    assert consumer.check()
    assert has_everything(server)


def test_entries_acked_on_the_old_timeline_after_the_replay_are_stored_again(
    make_stream: StreamMaker, prices: ConsumerGroup, server: Server
) -> None:
    """A consumer that was still connected to the old primary stores there what the new one needs."""
    other = replayer(make_stream, server)
    other.check()
    server.fail_over("two")
    assert replayer(make_stream, server).check()
    prices.append([{"seq": "36"}])  # and the other consumer stored it in the old primary
    assert other.check()
    assert server.seqs["prices"] == [*range(1, 37)]


def test_one_consumer_replays_at_a_time(make_stream: StreamMaker, prices: ConsumerGroup, server: Server) -> None:
    consumer = replayer(make_stream, server)
    consumer.check()
    server.fail_over("two")
    lock = Lock(prices.client, "{prices}:replay:g", timeout=60)
    assert lock.acquire(blocking=False)
    assert not consumer.check()
    assert server.seqs["prices"] == []
    lock.release()
    assert consumer.check()
    assert has_everything(server)


def test_consumer_that_lost_its_lock_leaves_the_replay_to_the_other(
    make_stream: StreamMaker, prices: ConsumerGroup, server: Server
) -> None:
    """It was paused for longer than the lock is valid."""
    consumer = replayer(make_stream, server)
    consumer.check()
    server.fail_over("two")

    def lose_lock() -> None:
        prices.client.delete("{prices}:replay:g")

    assert not consumer.check(on_batch=lose_lock)
    assert server.seqs["prices"] == [*range(1, COUNT + 1)]


@pytest.mark.usefixtures("prices")
def test_outage_of_redis_is_reported(make_stream: StreamMaker, server: Server, redis_server: object) -> None:
    consumer = replayer(make_stream, server)
    consumer.check()
    server.fail_over("two")
    redis_server.connected = False  # type: ignore[attr-defined]
    with pytest.raises(StreamOutageError):
        consumer.check()
