"""The publisher: straight to Redis, or all of it to the spool and none past it; what finds no place is counted."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import fakeredis
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from common import feed_event, threads, tick
from common.errors import ConfigurationError, DecodeError, OutageError, StreamOutageError, TickpipeError
from common.feed_event import FeedEvent
from common.streams.stream import Fields, Stream
from producer.publisher import Publisher
from producer.queue import MAX_APPEND, EventQueue, Item
from producer.replay import Replayer, replay
from producer.session import PriceEvent, Session
from producer.spool import Outgoing, Spool, SpoolFullError, spool_path
from producer.streams import Streams
from tests.support.waiting import PATIENCE, wait_for
from tests.unit.conftest import stored

START = 1_700_000_000_000_000


class House:
    """A producer without its feed: session, queue, publisher and spool, on a Redis that can be taken away."""

    def __init__(self, folder: Path, *, spool_max: int = 10**6, bound: int = 10**6) -> None:
        self.server = fakeredis.FakeServer()
        self.client = fakeredis.FakeStrictRedis(server=self.server, protocol=2)
        self.streams = Streams(Stream(self.client, "prices"), Stream(self.client, "prices:feed"))
        self.queue = EventQueue(bound)
        self.session = Session(START, self.queue.put_always, lambda: START)
        self.session.instruments.add(("AAPL", ""))  # else the first price adds a feed event to every test
        self.spool = Spool(spool_path(folder, START), max_bytes=spool_max)
        self.publisher = Publisher(self.queue, self.streams, self.spool)

    def price(self, symbol: str = "AAPL") -> PriceEvent:
        return self.session.number({"event": "price", "symbol": symbol, "timestamp": "1", "price": "2.50"}, START)

    def put(self, count: int) -> None:
        for _ in range(count):
            assert self.queue.put(self.price())

    def publish(self) -> None:
        """All that has arrived, as the publisher's thread would."""
        while batch := self.queue.take(timeout=0):
            self.publisher.publish(batch)

    def replay(self) -> None:
        replay(self.spool, self.streams, threading.Event())

    def seqs(self, where: str = "stream") -> list[int]:
        """The numbers of the prices in the stream or in the spool, in order."""
        if where == "stream":
            return [int(fields[b"seq"]) for _, fields in stored(self.client)]
        entries = self.spool.head("prices", 10**6)[1]
        return [int(cast("dict[str, str]", fields)["seq"]) for fields in entries]

    def words(self) -> list[tuple[str, dict[str, Any]]]:
        """The feed events in the stream: kind and detail."""
        events = [feed_event.decode(fields) for _, fields in stored(self.client, "prices:feed")]
        return [(event.event, json.loads(event.detail)) for event in events]

    def lost(self) -> list[int]:
        """The numbers that overflows name, in order."""
        ranges = [(told["first_seq"], told["last_seq"]) for kind, told in self.words() if kind == "overflow"]
        return [seq for first, last in ranges for seq in range(first, last + 1)]


@contextmanager
def opened(folder: Path, **options: int) -> Iterator[House]:
    house = House(folder, **options)
    try:
        yield house
    finally:
        house.spool.close()


@pytest.fixture
def house(tmp_path: Path, impatient: None) -> Iterator[House]:  # noqa: ARG001
    with opened(tmp_path) as one:
        yield one


# --- The queue


def test_the_queue_returns_waiting_items_in_batches(house: House) -> None:
    house.put(2 * MAX_APPEND + 5)
    house.queue.close()
    batches: list[list[Item]] = []
    while (batch := house.queue.take(timeout=0)) is not None:
        batches.append(batch)
    assert [len(batch) for batch in batches] == [MAX_APPEND, MAX_APPEND, 5]
    assert [item.seq for batch in batches for item in batch if isinstance(item, PriceEvent)] == [*range(1, 2006)]


def test_an_empty_queue_returns_an_empty_batch_after_the_timeout(house: House) -> None:
    assert house.queue.take(timeout=0.01) == []


def test_a_full_queue_refuses_prices_and_accepts_feed_events(tmp_path: Path) -> None:
    with opened(tmp_path, bound=2) as house:
        assert [house.queue.put(house.price()) for _ in range(3)] == [True, True, False]
        house.session.emit("alive")
        batch = house.queue.take(timeout=0) or []
        assert [type(item) for item in batch] == [PriceEvent, PriceEvent, FeedEvent]
        assert house.queue.put(house.price())


def test_a_closed_and_empty_queue_returns_none(house: House) -> None:
    house.put(1)
    house.queue.close()
    assert [len(house.queue.take(timeout=0) or []), house.queue.take(timeout=0)] == [1, None]


# --- To Redis


def test_entries_have_the_fields_of_the_contract(house: House) -> None:
    house.put(1)
    house.session.emit("alive", last_seq=1)
    house.publish()
    ((_, fields),) = stored(house.client)
    assert tick.decode(fields) == (str(START), "1", "AAPL", "1", "2.50", "", "", "", "", str(START + 1))
    assert tuple(fields) == tuple(name.encode() for name in tick.Tick._fields)
    assert house.words() == [("alive", {"last_seq": 1})]
    assert (house.publisher.appended, house.publisher.spooled, house.publisher.lost) == (2, 0, 0)


@pytest.mark.parametrize("away", [False, True], ids=["directly", "by the spool"])
def test_a_batch_is_appended_as_a_whole_with_prices_before_feed_events(
    house: House, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    calls: list[tuple[str, int]] = []
    append = house.streams.append

    def record(stream: str, entries: Sequence[Fields]) -> None:
        append(stream, entries)
        calls.append((stream, len(entries)))

    monkeypatch.setattr(house.streams, "append", record)
    house.server.connected = not away
    house.session.emit("alive")
    house.put(2)
    house.session.emit("alive")
    house.publish()
    house.server.connected = True
    house.replay()
    assert calls == [("prices", 2), ("feed", 2)]


@pytest.mark.parametrize("away", [False, True], ids=["straight", "by the spool"])
def test_a_lone_surrogate_is_appended_as_bytes_and_refused_by_the_decoder(house: House, away: bool) -> None:
    house.server.connected = not away
    for symbol in ("A", "\ud800", "B"):
        house.queue.put(house.price(symbol))
    house.publish()
    house.server.connected = True
    house.replay()
    first, odd, last = (fields for _, fields in stored(house.client))
    assert (tick.decode(first).symbol, tick.decode(last).symbol) == ("A", "B")
    assert odd[b"symbol"] == b"\xed\xa0\x80"
    with pytest.raises(DecodeError, match="not UTF-8"):
        tick.decode(odd)


def test_each_instrument_is_recorded_once_in_each_session(house: House) -> None:
    next_day = Session(START + 86_400_000_000, house.queue.put_always, lambda: START)
    for session in (house.session, next_day):
        for symbol, exchange in (("BTC/USD", "Kraken"), ("BTC/USD", "Coinbase"), ("BTC/USD", "Kraken")):
            event = {"event": "price", "symbol": symbol, "exchange": exchange, "type": "Digital Currency"}
            assert house.queue.put(session.number(event, session.id))
    house.publish()
    events = [feed_event.decode(fields) for _, fields in stored(house.client, "prices:feed")]
    kraken, coinbase = (
        {"symbol": "BTC/USD", "type": "Digital Currency", "exchange": exchange} for exchange in ("Kraken", "Coinbase")
    )
    assert [(int(event.session), event.number, int(event.at), json.loads(event.detail)) for event in events] == [
        (session.id, number, session.id + seq, instrument)
        for session in (house.session, next_day)
        for number, seq, instrument in (("1", 1, kraken), ("2", 2, coinbase))
    ]
    assert {event.event for event in events} == {"instrument"}


def test_instruments_of_the_last_prices_are_recorded_after_the_queue_is_closed(house: House) -> None:
    house.put(1)
    assert house.queue.put(house.price("MSFT"))
    house.queue.close()
    house.publisher.run()
    assert house.seqs() == [1, 2]
    assert house.words() == [("instrument", {"symbol": "MSFT"})]


# --- To the spool, and back


def test_no_event_passes_a_spool_that_is_not_empty(house: House) -> None:
    house.put(2)
    house.publish()
    house.server.connected = False
    house.put(2)
    house.publish()
    house.server.connected = True
    house.put(2)
    house.publish()  # Redis is back, but 3 and 4 still wait
    assert (house.seqs(), house.seqs("spool")) == ([1, 2], [3, 4, 5, 6])
    house.replay()
    house.put(1)
    house.publish()
    assert (house.seqs(), house.spool.entries) == ([1, 2, 3, 4, 5, 6, 7], 0)
    assert (house.publisher.appended, house.publisher.spooled, house.publisher.lost) == (3, 4, 0)


@pytest.mark.parametrize("error", [StreamOutageError("OOM"), ConfigurationError("the password has changed")])
def test_a_batch_is_spooled_after_any_error_of_redis(
    house: House, error: TickpipeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(house.streams, "append", refuse)
    house.put(3)
    house.publish()
    assert house.seqs("spool") == [1, 2, 3]


def test_closing_the_queue_publishes_everything(house: House) -> None:
    house.put(2 * MAX_APPEND + 5)
    house.session.emit("stopped", last_seq=2005)
    house.queue.close()
    house.publisher.run()
    assert house.seqs() == [*range(1, 2006)]
    assert house.words() == [("stopped", {"last_seq": 2005})]


def test_prices_lost_to_a_full_spool_are_counted_and_recorded_by_exact_range(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path, spool_max=0) as house:
        for count in (3, 2):  # lost
            house.server.connected = False
            house.put(count)
            house.session.emit("alive", last_seq=house.session.seq)
            house.publish()
            house.server.connected = True
            house.replay()
            house.put(1)  # gets through
            house.publish()
        assert house.publisher.lost == 5
        assert house.seqs() == [4, 7]
        assert house.lost() == [1, 2, 3, 5, 6]  # told as soon as it is over
        assert [told["last_seq"] for kind, told in house.words() if kind == "alive"] == [3, 6]  # these still pass
        assert told_lost(caplog) == ["3 so far", "3 since the start", "5 so far", "5 since the start"]


def told_lost(caplog: pytest.LogCaptureFixture) -> list[str]:
    """How many prices the log says are lost, in order."""
    return [
        record.getMessage().rpartition(": ")[2].replace("price events lost ", "")
        for record in caplog.records
        if "price events lost" in record.getMessage()
    ]


def test_losses_are_logged_once_a_minute_and_once_when_they_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    with opened(tmp_path, spool_max=0) as house:
        house.publisher._monotonic = lambda: now
        house.server.connected = False
        for now in (0.0, 59.0, 60.0, 61.0):  # noqa: B007  the lambda reads it
            house.put(2)
            house.publish()
        house.server.connected = True
        for _ in range(2):
            house.put(1)
            house.publish()
    assert told_lost(caplog) == ["2 so far", "6 so far", "8 since the start"]


def test_no_checkpoint_is_stored_before_the_losses_that_it_covers(tmp_path: Path) -> None:
    """A producer that is killed right after an `alive` must not leave numbers that `verify` would miss for ever."""
    with opened(tmp_path, spool_max=0) as house:
        house.server.connected = False
        for _ in range(3):
            house.put(4)
            house.publish()  # lost, and nothing is told yet: an event for each batch would be too many
        house.put(1)
        house.session.emit("alive", last_seq=house.session.seq)
        house.publish()
        told = [cast("dict[str, str]", fields) for fields in house.spool.head("feed", 100)[1]]
        assert [(fields["event"], json.loads(fields["detail"])["last_seq"]) for fields in told] == [
            ("alive", 13),
            ("overflow", 12),
            ("overflow", 13),
        ]


def test_feed_events_that_the_spool_refuses_are_kept_for_later(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise SpoolFullError("the disk is full")

    house.server.connected = False
    monkeypatch.setattr(house.spool, "put", refuse)
    house.put(2)
    house.session.emit("disconnected")
    house.publish()
    house.server.connected = True
    house.queue.close()
    house.publisher.run()
    assert [kind for kind, _ in house.words()] == ["disconnected", "overflow"]
    assert house.lost() == [1, 2]


# --- One stream is refused for good


def test_prices_are_appended_once_while_feed_events_are_refused(house: House) -> None:
    """And nothing is lost: the events are appended, in order, as soon as that works again."""
    house.client.set("prices:feed", "x")
    for number in range(1, 4):
        house.put(2)
        house.session.emit("alive", last_seq=house.session.seq)
        house.publish()
        assert house.seqs() == [*range(1, 2 * number + 1)]
    assert (house.seqs("spool"), house.spool.waiting("feed")) == ([], 3)
    house.client.delete("prices:feed")
    house.replay()
    assert [told["last_seq"] for _, told in house.words()] == [2, 4, 6]
    assert house.seqs() == [*range(1, 7)]


def test_feed_events_wait_for_the_prices_before_them(house: House) -> None:
    house.client.set("prices", "x")
    house.put(2)
    house.session.emit("alive", last_seq=2)
    house.publish()
    house.session.emit("alive", last_seq=2)
    house.publish()
    stop = threading.Event()
    stop.set()
    with pytest.raises(OutageError):
        replay(house.spool, house.streams, stop)
    assert not house.client.exists("prices:feed")
    house.client.delete("prices")
    house.replay()
    assert (house.seqs(), len(house.words())) == ([1, 2], 2)


@pytest.mark.parametrize("error", [StreamOutageError("WRONGTYPE"), ConfigurationError("NOPERM")])
@pytest.mark.parametrize("orphan", [False, True], ids=["own spool", "orphan"])
def test_entries_appended_by_a_replay_are_not_appended_again(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: TickpipeError, orphan: bool
) -> None:
    """Neither at the next try, nor by the next process that opens the spool."""
    path = spool_path(tmp_path, 1) if orphan else house.spool.path
    spool = Spool(path, max_bytes=10**6) if orphan else house.spool
    append = house.streams.append
    stop = threading.Event()

    def refuse_events(stream: str, entries: Sequence[Fields]) -> None:
        if stream == "feed":
            stop.set()
            raise error
        append(stream, entries)

    for n in range(1, 4):
        spool.put([Outgoing("prices", {"seq": str(n)}), Outgoing("feed", {"number": str(n)})])
    with monkeypatch.context() as refused:
        refused.setattr(house.streams, "append", refuse_events)
        for _ in range(3):
            stop.clear()
            with pytest.raises(type(error)):
                replay(spool, house.streams, stop)
    assert (house.seqs(), spool.waiting("prices"), spool.waiting("feed")) == ([1, 2, 3], 0, 3)
    if orphan:
        spool.close()
        spool = Spool(path, max_bytes=10**6)
    replay(spool, house.streams, threading.Event())
    assert house.seqs() == [1, 2, 3]
    assert [fields[b"number"] for _, fields in stored(house.client, "prices:feed")] == [b"1", b"2", b"3"]


def test_appended_prices_do_not_count_as_lost_if_their_feed_events_are_refused(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise SpoolFullError("the disk is full")

    house.client.set("prices:feed", "x")
    with monkeypatch.context() as full:
        full.setattr(house.spool, "put", refuse)
        house.put(2)
        house.session.emit("alive", last_seq=2)
        house.publish()
    house.client.delete("prices:feed")
    house.queue.close()
    house.publisher.run()
    assert (house.publisher.lost, house.seqs(), house.words()) == (0, [1, 2], [("alive", {"last_seq": 2})])


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.booleans()), max_size=12),
    st.sampled_from([0, 400, 1_000, 10**6]),
)
def test_every_price_is_in_the_stream_once_or_recorded_as_lost(
    steps: list[tuple[bool, int, bool]], spool_max: int
) -> None:
    """However Redis comes and goes (`up`), whatever the spool takes, and whenever it is replayed."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder), spool_max=spool_max) as house:
        for up, count, replayed in steps:
            house.server.connected = up
            house.put(count)
            if up and replayed:
                house.replay()
            house.publish()
        house.server.connected = True
        house.queue.close()
        house.publisher.run()
        house.replay()
        stored, lost = house.seqs(), house.lost()
        assert stored == sorted(stored)
        assert sorted(stored + lost) == [*range(1, house.session.seq + 1)]
        assert (house.publisher.lost, house.publisher.appended + house.publisher.spooled) == (
            len(lost),
            len(stored) + len(house.words()),
        )


# --- Replaying


@contextmanager
def working(work: Callable[[], None], stop: threading.Event) -> Iterator[Future[None]]:
    """Do it in a thread, until the end of the block."""
    thread = threads.in_thread(work)
    try:
        yield thread
    finally:
        stop.set()
        thread.result(timeout=PATIENCE)


def test_the_spool_is_replayed_after_each_outage_of_redis(house: House) -> None:
    stop = threading.Event()
    replayer = Replayer(house.spool, house.streams, house.streams, stop)
    with working(replayer.run, stop):
        for _ in range(2):
            house.server.connected = False
            house.put(3)
            house.publish()
            house.server.connected = True
            wait_for(lambda: house.spool.entries == 0)
    assert house.seqs() == [1, 2, 3, 4, 5, 6]


def test_a_replay_that_is_stopped_keeps_its_entries(house: House) -> None:
    house.server.connected = False
    house.put(3)
    house.publish()
    stop = threading.Event()
    stop.set()
    with pytest.raises(OutageError):
        replay(house.spool, house.streams, stop)
    assert house.seqs("spool") == [1, 2, 3]


def test_an_append_without_an_answer_is_repeated(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.server.connected = False
    house.put(2)
    house.publish()
    house.server.connected = True
    append, calls = house.streams.append, iter([True])

    def unanswered(stream: str, entries: Sequence[Fields]) -> None:
        append(stream, entries)
        if next(calls, False):
            raise StreamOutageError("Timeout reading from socket")

    monkeypatch.setattr(house.streams, "append", unanswered)
    house.replay()
    assert house.seqs() == [1, 2, 1, 2]  # the database knows them by their numbers


def test_orphans_are_replayed_independently_and_their_files_removed(house: House, tmp_path: Path) -> None:
    for n in (1, 2):
        orphan = Spool(spool_path(tmp_path, n), max_bytes=1000)
        orphan.put([Outgoing("prices", {"seq": str(n)}), Outgoing("feed", {"number": "1"})])
        orphan.close()
    (tmp_path / "0.spool").write_bytes(b"no database" * 100)  # must not end a producer
    house.spool.put([Outgoing("prices", {"seq": "99"})])
    stop = threading.Event()
    other: redis.Redis = fakeredis.FakeStrictRedis(server=house.server, protocol=2)
    orphans = Streams(Stream(other, "prices"), Stream(other, "prices:feed"))
    with working(Replayer(house.spool, house.streams, orphans, stop).run_orphans, stop):
        wait_for(lambda: not spool_path(tmp_path, 2).exists())
    assert house.seqs() == [1, 2]
    assert house.seqs("spool") == [99]


def test_the_watermark_is_far_below_the_bound_of_the_queue(tmp_path: Path) -> None:
    house = House(tmp_path, bound=100)
    told = []
    for count in (10, 1):
        house.put(count)
        told.append(house.queue.above_watermark)
    house.queue.take(timeout=0)
    assert [*told, house.queue.above_watermark] == [False, True, False]
