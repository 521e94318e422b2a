"""With REDIS_REPLICAS, a failover at any time loses nothing and appends nothing twice."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import fakeredis
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from common import retry
from common.errors import OutageError
from common.streams.stream import Confirmation, Fence, Numbered, Stream
from producer.feeds.twelvedata import TwelveData
from producer.publisher import Publisher
from producer.queue import EventQueue
from producer.replay import replay
from producer.session import Session
from producer.spool import Spool, SpoolFullError
from producer.spool_folder import spool_path
from producer.streams import Streams
from tests.unit.conftest import stored

START = 1_700_000_000_000_000
DAY = 86_400_000_000


def new_client() -> redis.Redis:
    return fakeredis.FakeStrictRedis(server=fakeredis.FakeServer(), protocol=2)


class ReplicatedStream(Stream):
    """A stream on a primary with one replica, which gets what is new when it is asked for a confirmation."""

    def __init__(self, key: str) -> None:
        super().__init__(new_client(), key)
        self.replica_up = self.primary_up = True
        self._replica = new_client()

    def append_once(
        self, batches: Sequence[Numbered], *, fence: Fence | None = None, confirm: Confirmation | None = None
    ) -> tuple[int, bool]:
        """See Stream."""
        if not self.primary_up:
            raise OutageError("no primary")
        appended, _ = super().append_once(batches, fence=fence)
        if confirm and self.replica_up:
            self.replicate()
        return appended, confirm is not None and self.replica_up

    def replicate(self) -> None:
        """Copy everything to the replica."""
        self._replica.flushall()
        for entry_id, fields in stored(self._redis, self.key):
            self._replica.xadd(self.key, dict(fields), id=entry_id)  # type: ignore[arg-type]
        for mark in self._redis.keys("*:high:*"):
            self._replica.set(mark, self._redis.get(mark) or b"")

    def fail_over(self) -> None:
        """Make the replica the primary, and the old primary its replica. The clients notice nothing."""
        self._redis, self._replica = self._replica, self._redis
        self.replicate()

    def numbers(self, name: str) -> list[tuple[int, int]]:
        """Session and number of each entry, in the order of the stream."""
        return [(int(fields[b"session"]), int(fields[name.encode()])) for _, fields in stored(self._redis, self.key)]


class Producer:
    """Session, publisher, spool and its replay, on streams with replicas."""

    def __init__(self, folder: Path) -> None:
        self.prices, self.feed = ReplicatedStream("prices"), ReplicatedStream("prices:feed")
        self.streams = Streams(self.prices, self.feed, confirm=Confirmation(1, 0.5))
        self.queue = EventQueue(10**6)
        self.spool = Spool(spool_path(folder, START), max_bytes=10**7)
        self.publisher = Publisher(self.queue, self.streams, self.spool, TwelveData())
        self.sessions: list[Session] = []
        self.begin_session()

    def begin_session(self) -> None:
        """As at midnight."""
        start = START + len(self.sessions) * DAY
        session = Session(start, self.queue.put_always, lambda: start)
        session.instruments.add(("AAPL", ""))
        self.sessions.append(session)

    def publish(self, prices: int) -> None:
        session = self.sessions[-1]
        for _ in range(prices):
            event = {"event": "price", "symbol": "AAPL", "timestamp": "1", "price": "2.50"}
            self.queue.put(session.number(event, session.id))
        session.checkpoint("alive")
        while batch := self.queue.take(timeout=0):
            self.publisher.publish(batch)

    def replay(self) -> None:
        """One attempt."""
        stop = threading.Event()
        stop.set()
        with suppress(OutageError):
            replay(self.spool, self.streams, stop)

    def replay_all(self) -> None:
        replay(self.spool, self.streams, threading.Event())


@contextmanager
def opened() -> Iterator[Producer]:
    with tempfile.TemporaryDirectory() as folder:
        producer = Producer(Path(folder))
        try:
            yield producer
        finally:
            producer.spool.close()


@pytest.fixture
def producer(impatient: None) -> Iterator[Producer]:  # noqa: ARG001
    with opened() as producer:
        yield producer


def test_confirmed_prices_need_no_second_copy(producer: Producer) -> None:
    producer.publish(3)
    assert producer.spool.entries == 0
    producer.prices.fail_over()
    assert producer.prices.numbers("seq") == [(START, 1), (START, 2), (START, 3)]


def test_lost_replica_stops_nothing(producer: Producer) -> None:
    producer.prices.replica_up = producer.feed.replica_up = False
    for _ in range(3):
        producer.publish(2)
    assert [number for _, number in producer.prices.numbers("seq")] == [1, 2, 3, 4, 5, 6]
    assert [number for _, number in producer.feed.numbers("number")] == [1, 2, 3]
    assert (producer.spool.waiting("prices"), producer.spool.not_appended("prices")) == (6, 0)
    producer.prices.replica_up = producer.feed.replica_up = True
    producer.replay_all()
    assert producer.spool.entries == 0
    assert len(producer.prices.numbers("seq")) == 6


def test_full_spool_loses_nothing_that_redis_has(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SpoolFullError("the spool is full")

    producer.prices.replica_up = producer.feed.replica_up = False
    monkeypatch.setattr(producer.spool, "put", refuse)
    for _ in range(3):
        producer.publish(2)
    assert producer.publisher.lost == 0
    assert len(producer.prices.numbers("seq")) == 6
    assert caplog.text.count("have no second copy") == 1


def test_prices_without_a_confirmation_are_appended_to_the_new_primary(producer: Producer) -> None:
    producer.publish(2)
    producer.prices.replica_up = False
    producer.publish(2)
    producer.prices.fail_over()
    producer.publish(1)
    assert [number for _, number in producer.prices.numbers("seq")] == [1, 2]
    producer.prices.replica_up = True
    producer.replay_all()
    assert [number for _, number in producer.prices.numbers("seq")] == [1, 2, 3, 4, 5]


def test_next_producer_appends_what_the_new_primary_lacks(producer: Producer) -> None:
    producer.prices.replica_up = False
    producer.publish(3)
    path = producer.spool.path
    producer.spool.close()
    producer.prices.fail_over()
    producer.prices.replica_up = True
    with closing(Spool(path, max_bytes=0)) as orphan:
        replay(orphan, producer.streams, threading.Event())
    assert [number for _, number in producer.prices.numbers("seq")] == [1, 2, 3]


STEPS: dict[str, Callable[[Producer, ReplicatedStream], None]] = {
    "publish": lambda producer, _: producer.publish(2),
    "publish one": lambda producer, _: producer.publish(1),
    "replay": lambda producer, _: producer.replay(),
    "begin a session": lambda producer, _: producer.begin_session(),
    "lose the replica": lambda _, stream: setattr(stream, "replica_up", False),
    "replica returns": lambda _, stream: setattr(stream, "replica_up", True),
    "replicate": lambda _, stream: stream.replicate(),
    "lose the primary": lambda _, stream: setattr(stream, "primary_up", False),
    "primary returns": lambda _, stream: setattr(stream, "primary_up", True),
    "fail over": lambda _, stream: stream.fail_over(),
}


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(list(STEPS)), st.booleans()), min_size=5, max_size=25))
def test_every_entry_is_appended_exactly_once_whatever_fails(steps: list[tuple[str, bool]]) -> None:
    """A failover may come between any two steps, to a replica that lacks what it did not confirm."""
    with pytest.MonkeyPatch.context() as patch, opened() as producer:
        patch.setattr(retry, "FIRST", 0.0001)
        patch.setattr(retry, "LONGEST", 0.0002)
        for step, is_price in steps:
            STEPS[step](producer, producer.prices if is_price else producer.feed)
        for stream in (producer.prices, producer.feed):
            stream.primary_up = stream.replica_up = True
        producer.publish(1)
        producer.replay_all()
        for stream, name, counter in ((producer.prices, "seq", "seq"), (producer.feed, "number", "_number")):
            lasts = [(session.id, getattr(session, counter)) for session in producer.sessions]
            stream.fail_over()
            assert sorted(stream.numbers(name)) == [(each, n) for each, last in lasts for n in range(1, last + 1)]


def test_first_price_of_the_active_producer_is_found(producer: Producer) -> None:
    """Not an older price that was appended later, from a spool."""
    now = int(time.time() * 1e6)
    for seq, received in ((77, now - 5_000_000), (1, now + 5_000_000), (2, now + 6_000_000)):
        producer.prices._redis.xadd("prices", {"seq": seq, "received": received})
    assert producer.streams.first_received(now - 1_000_000) == now + 5_000_000
    assert producer.streams.first_received(now + 60_000_000) is None


def test_first_price_of_the_active_producer_may_have_been_trimmed(producer: Producer) -> None:
    now = int(time.time() * 1e6)
    since = now - 1_000_000
    producer.prices._redis.xadd("prices", {"seq": 9, "received": now + 5_000_000})
    assert producer.streams.first_received(since) == since
    producer.prices._redis.delete("prices")
    producer.prices._redis.xadd("prices", {"seq": 8}, id="1-1")
    producer.prices._redis.xadd("prices", {"seq": 9, "received": now + 5_000_000})
    assert producer.streams.first_received(since) == now + 5_000_000
