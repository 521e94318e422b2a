"""The publisher appends to Redis, or spools everything while it cannot. Losses are counted and recorded."""

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
from common.streams.stream import Fence, Fields, Stream
from producer.feeds.twelvedata import TwelveData
from producer.publisher import Publisher
from producer.queue import MAX_APPEND, EventQueue, Item
from producer.replay import Replayer, replay, replay_orphans
from producer.session import PriceEvent, Session
from producer.spool import Outgoing, Spool, SpoolFullError
from producer.spool_folder import spool_path
from producer.streams import Streams
from tests.support.waiting import PATIENCE, wait_for
from tests.unit.conftest import stored

START = 1_700_000_000_000_000


class Harness:
    """A producer without its feed: session, queue, publisher and spool, on a Redis that can be disconnected."""

    def __init__(self, folder: Path, *, spool_max: int = 10**6, bound: int = 10**6) -> None:
        self.server = fakeredis.FakeServer()
        self.client = fakeredis.FakeStrictRedis(server=self.server, protocol=2)
        self.streams = Streams(Stream(self.client, "prices"), Stream(self.client, "prices:feed"))
        self.queue = EventQueue(bound)
        self.session = Session(START, self.queue.put_always, lambda: START)
        self.session.instruments.add(("AAPL", ""))  # otherwise the first price would add a feed event to each test
        self.spool = Spool(spool_path(folder, START), max_bytes=spool_max)
        self.publisher = Publisher(self.queue, self.streams, self.spool, TwelveData())

    def price(self, symbol: str = "AAPL") -> PriceEvent:
        return self.session.number({"event": "price", "symbol": symbol, "timestamp": "1", "price": "2.50"}, START)

    def put(self, count: int) -> None:
        for _ in range(count):
            assert self.queue.put(self.price())

    def publish(self) -> None:
        """Publish all waiting events, as the publisher's thread does."""
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

    def feed_events(self) -> list[tuple[str, dict[str, Any]]]:
        """The feed events in the stream: kind and detail."""
        events = [feed_event.decode(fields) for _, fields in stored(self.client, "prices:feed")]
        return [(event.event, json.loads(event.detail)) for event in events]

    def lost(self) -> list[int]:
        """The numbers in the recorded losses, in order."""
        ranges = [
            (detail["first_seq"], detail["last_seq"]) for kind, detail in self.feed_events() if kind == "overflow"
        ]
        return [seq for first, last in ranges for seq in range(first, last + 1)]


@contextmanager
def opened(folder: Path, **options: int) -> Iterator[Harness]:
    harness = Harness(folder, **options)
    try:
        yield harness
    finally:
        harness.spool.close()


@pytest.fixture
def harness(tmp_path: Path, impatient: None) -> Iterator[Harness]:  # noqa: ARG001
    with opened(tmp_path) as harness:
        yield harness


# --- The queue


def test_queue_returns_everything_in_batches(harness: Harness) -> None:
    harness.put(2 * MAX_APPEND + 5)
    harness.queue.close()
    batches: list[list[Item]] = []
    while (batch := harness.queue.take(timeout=0)) is not None:
        batches.append(batch)
    assert [len(batch) for batch in batches] == [MAX_APPEND, MAX_APPEND, 5]
    assert [item.seq for batch in batches for item in batch if isinstance(item, PriceEvent)] == [*range(1, 2006)]


def test_queue_waits_for_the_first_item_then_times_out(harness: Harness) -> None:
    assert harness.queue.take(timeout=0.01) == []


def test_full_queue_refuses_prices_and_accepts_feed_events(tmp_path: Path) -> None:
    with opened(tmp_path, bound=2) as harness:
        assert [harness.queue.put(harness.price()) for _ in range(3)] == [True, True, False]
        harness.session.emit("alive")
        batch = harness.queue.take(timeout=0) or []
        assert [type(item) for item in batch] == [PriceEvent, PriceEvent, FeedEvent]
        assert harness.queue.put(harness.price())


def test_closed_queue_returns_nothing(harness: Harness) -> None:
    harness.put(1)
    harness.queue.close()
    assert [len(harness.queue.take(timeout=0) or []), harness.queue.take(timeout=0)] == [1, None]


# --- Append to Redis


def test_entries_match_the_contract(harness: Harness) -> None:
    harness.put(1)
    harness.session.emit("alive", last_seq=1)
    harness.publish()
    ((_, fields),) = stored(harness.client)
    assert tick.decode(fields) == tick.Tick(str(START), "1", "AAPL", "1", "2.50", "", "", "", "", str(START + 1))
    assert tuple(fields) == tuple(name.encode() for name in tick.Tick._fields if name not in tick.TRADE_FIELDS)
    assert harness.feed_events() == [("alive", {"last_seq": 1})]
    assert (harness.publisher.appended, harness.publisher.spooled, harness.publisher.lost) == (2, 0, 0)


@pytest.mark.parametrize("unavailable", [False, True], ids=["direct", "spool"])
def test_batch_is_appended_whole_with_prices_before_feed_events(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, unavailable: bool
) -> None:
    calls: list[tuple[str, int]] = []
    append = harness.streams.append

    def record(stream: str, entries: Sequence[Fields], **options: Any) -> bool:
        confirmed = append(stream, entries, **options)
        calls.append((stream, len(entries)))
        return confirmed

    monkeypatch.setattr(harness.streams, "append", record)
    harness.server.connected = not unavailable
    harness.session.emit("alive")
    harness.put(2)
    harness.session.emit("alive")
    harness.publish()
    harness.server.connected = True
    harness.replay()
    assert calls == [("prices", 2), ("feed", 2)]


@pytest.mark.parametrize("unavailable", [False, True], ids=["direct", "spool"])
def test_lone_surrogate_is_passed_as_bytes_and_refused_at_decoding(harness: Harness, unavailable: bool) -> None:
    harness.server.connected = not unavailable
    for symbol in ("A", "\ud800", "B"):
        harness.queue.put(harness.price(symbol))
    harness.publish()
    harness.server.connected = True
    harness.replay()
    first, odd, last = (fields for _, fields in stored(harness.client))
    assert (tick.decode(first).symbol, tick.decode(last).symbol) == ("A", "B")
    assert odd[b"symbol"] == b"\xed\xa0\x80"
    with pytest.raises(DecodeError, match="not UTF-8"):
        tick.decode(odd)


def test_each_instrument_is_recorded_once_in_each_session(harness: Harness) -> None:
    next_day = Session(START + 86_400_000_000, harness.queue.put_always, lambda: START)
    for session in (harness.session, next_day):
        for symbol, exchange in (("BTC/USD", "Kraken"), ("BTC/USD", "Coinbase"), ("BTC/USD", "Kraken")):
            event = {"event": "price", "symbol": symbol, "exchange": exchange, "type": "Digital Currency"}
            assert harness.queue.put(session.number(event, session.id))
    harness.publish()
    events = [feed_event.decode(fields) for _, fields in stored(harness.client, "prices:feed")]
    kraken, coinbase = (
        {"symbol": "BTC/USD", "type": "Digital Currency", "exchange": exchange} for exchange in ("Kraken", "Coinbase")
    )
    assert [(int(event.session), event.number, int(event.at), json.loads(event.detail)) for event in events] == [
        (session.id, number, session.id + seq, instrument)
        for session in (harness.session, next_day)
        for number, seq, instrument in (("1", 1, kraken), ("2", 2, coinbase))
    ]
    assert {event.event for event in events} == {"instrument"}


def test_beginning_of_a_session_is_appended_before_its_prices(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between two appends leaves no price of a session that is unknown."""
    appended: list[tuple[str, int]] = []
    append = harness.streams.append

    def noted(stream: str, entries: Sequence[Fields], **options: Any) -> bool:
        appended.append((stream, len(entries)))
        return append(stream, entries, **options)

    monkeypatch.setattr(harness.streams, "append", noted)
    for _ in range(2):  # the second session begins at midnight: both are in one batch
        harness.put(1)
        harness.session.checkpoint("stopped", START)
        harness.session.emit("started", START)
        harness.put(2)
    harness.session.emit("alive", START)
    harness.publish()
    assert appended == [("prices", 1), ("feed", 2), ("prices", 3), ("feed", 2), ("prices", 2), ("feed", 1)]


def test_instruments_of_the_last_prices_are_recorded_after_the_queue_is_closed(harness: Harness) -> None:
    harness.put(1)
    assert harness.queue.put(harness.price("MSFT"))
    harness.queue.close()
    harness.publisher.run()
    assert harness.seqs() == [1, 2]
    assert harness.feed_events() == [("instrument", {"symbol": "MSFT"})]


# --- Spool


def test_nothing_overtakes_a_spool_that_is_not_empty(harness: Harness) -> None:
    harness.put(2)
    harness.publish()
    harness.server.connected = False
    harness.put(2)
    harness.publish()
    harness.server.connected = True
    harness.put(2)
    harness.publish()  # Redis is available again, but 3 and 4 still wait
    assert (harness.seqs(), harness.seqs("spool")) == ([1, 2], [3, 4, 5, 6])
    harness.replay()
    harness.put(1)
    harness.publish()
    assert (harness.seqs(), harness.spool.entries) == ([1, 2, 3, 4, 5, 6, 7], 0)
    assert (harness.publisher.appended, harness.publisher.spooled, harness.publisher.lost) == (3, 4, 0)


@pytest.mark.parametrize("error", [StreamOutageError("OOM"), ConfigurationError("the password has changed")])
def test_batch_is_spooled_for_every_redis_error(
    harness: Harness, error: TickpipeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise error

    monkeypatch.setattr(harness.streams, "append", refuse)
    harness.put(3)
    harness.publish()
    assert harness.seqs("spool") == [1, 2, 3]


def test_shutdown_flushes_everything(harness: Harness) -> None:
    harness.put(2 * MAX_APPEND + 5)
    harness.session.emit("stopped", last_seq=2005)
    harness.queue.close()
    harness.publisher.run()
    assert harness.seqs() == [*range(1, 2006)]
    assert harness.feed_events() == [("stopped", {"last_seq": 2005})]


def test_full_spool_counts_lost_prices_and_records_their_exact_ranges(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path, spool_max=0) as harness:
        for count in (3, 2):  # lost
            harness.server.connected = False
            harness.put(count)
            harness.session.emit("alive", last_seq=harness.session.seq)
            harness.publish()
            harness.server.connected = True
            harness.replay()
            harness.put(1)  # is appended
            harness.publish()
        assert harness.publisher.lost == 5
        assert harness.seqs() == [4, 7]
        assert harness.lost() == [1, 2, 3, 5, 6]  # recorded as soon as Redis accepts events
        assert [detail["last_seq"] for kind, detail in harness.feed_events() if kind == "alive"] == [3, 6]  # not lost
        assert logged_losses(caplog) == ["3 so far", "3 since the start", "5 so far", "5 since the start"]


def logged_losses(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The numbers of lost prices in the log lines, in order."""
    return [
        record.getMessage().rpartition(": ")[2].replace("price events lost ", "")
        for record in caplog.records
        if "price events lost" in record.getMessage()
    ]


def test_full_spool_is_logged_every_minute_and_at_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    with opened(tmp_path, spool_max=0) as harness:
        harness.publisher._monotonic = lambda: now
        harness.server.connected = False
        for now in (0.0, 59.0, 60.0, 61.0):  # noqa: B007  the lambda reads it
            harness.put(2)
            harness.publish()
        harness.server.connected = True
        for _ in range(2):
            harness.put(1)
            harness.publish()
    assert logged_losses(caplog) == ["2 so far", "6 so far", "8 since the start"]


def test_losses_are_recorded_before_the_checkpoint_covers_them(tmp_path: Path) -> None:
    """Otherwise `verify` would report missing prices forever if the producer is killed right after an `alive`."""
    with opened(tmp_path, spool_max=0) as harness:
        harness.server.connected = False
        for _ in range(3):
            harness.put(4)
            harness.publish()  # lost, but not recorded yet: one event for each batch would be too many
        harness.put(1)
        harness.session.emit("alive", last_seq=harness.session.seq)
        harness.publish()
        events = [cast("dict[str, str]", fields) for fields in harness.spool.head("feed", 100)[1]]
        assert [(fields["event"], json.loads(fields["detail"])["last_seq"]) for fields in events] == [
            ("alive", 13),
            ("overflow", 12),
            ("overflow", 13),
        ]


@pytest.mark.parametrize("fence", [None, Fence("twelvedata", 1)])
def test_feed_events_that_wait_in_the_queue_survive_a_loss(tmp_path: Path, fence: Fence | None) -> None:
    """With a fence, numbers below the highest one are appended already. A loss has a higher one than what waits."""
    with opened(tmp_path, spool_max=0) as harness:
        harness.streams = Streams(Stream(harness.client, "prices"), Stream(harness.client, "prices:feed"), fence=fence)
        harness.publisher = Publisher(harness.queue, harness.streams, harness.spool, TwelveData())
        harness.server.connected = False
        harness.put(3)
        harness.publish()
        harness.server.connected = True
        assert harness.queue.put(harness.price("MSFT"))  # a new instrument: its feed event joins the queue
        harness.session.checkpoint("alive")
        harness.publish()
        assert sorted(kind for kind, _ in harness.feed_events()) == ["alive", "instrument", "overflow"]
        assert harness.lost() == [1, 2, 3]


def test_feed_events_refused_by_the_spool_are_kept_for_later(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise SpoolFullError("the disk is full")

    harness.server.connected = False
    monkeypatch.setattr(harness.spool, "put", refuse)
    harness.put(2)
    harness.session.emit("disconnected")
    harness.publish()
    harness.server.connected = True
    harness.queue.close()
    harness.publisher.run()
    assert [kind for kind, _ in harness.feed_events()] == ["disconnected", "overflow"]
    assert harness.lost() == [1, 2]


# --- Redis refuses one of the streams


def test_prices_are_appended_once_while_feed_events_are_refused(harness: Harness) -> None:
    """The feed events are appended in order as soon as Redis accepts them."""
    harness.client.set("prices:feed", "x")
    for number in range(1, 4):
        harness.put(2)
        harness.session.emit("alive", last_seq=harness.session.seq)
        harness.publish()
        assert harness.seqs() == [*range(1, 2 * number + 1)]
    assert (harness.seqs("spool"), harness.spool.waiting("feed")) == ([], 3)
    harness.client.delete("prices:feed")
    harness.replay()
    assert [detail["last_seq"] for _, detail in harness.feed_events()] == [2, 4, 6]
    assert harness.seqs() == [*range(1, 7)]


def test_feed_events_wait_for_earlier_prices(harness: Harness) -> None:
    harness.client.set("prices", "x")
    harness.put(2)
    harness.session.emit("alive", last_seq=2)
    harness.publish()
    harness.session.emit("alive", last_seq=2)
    harness.publish()
    stop = threading.Event()
    stop.set()
    with pytest.raises(OutageError):
        replay(harness.spool, harness.streams, stop)
    assert not harness.client.exists("prices:feed")
    harness.client.delete("prices")
    harness.replay()
    assert (harness.seqs(), len(harness.feed_events())) == ([1, 2], 2)


@pytest.mark.parametrize("error", [StreamOutageError("WRONGTYPE"), ConfigurationError("NOPERM")])
@pytest.mark.parametrize("orphan", [False, True], ids=["own spool", "orphan"])
def test_replayed_entries_are_not_appended_again(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: TickpipeError, orphan: bool
) -> None:
    """Neither by the next attempt nor by the next process that opens the spool."""
    path = spool_path(tmp_path, 1) if orphan else harness.spool.path
    spool = Spool(path, max_bytes=10**6) if orphan else harness.spool
    append = harness.streams.append
    stop = threading.Event()

    def refuse_events(stream: str, entries: Sequence[Fields], **options: Any) -> bool:
        if stream == "feed":
            stop.set()
            raise error
        return append(stream, entries, **options)

    for n in range(1, 4):
        spool.put([Outgoing("prices", {"seq": str(n)}), Outgoing("feed", {"number": str(n)})])
    with monkeypatch.context() as refused:
        refused.setattr(harness.streams, "append", refuse_events)
        for _ in range(3):
            stop.clear()
            with pytest.raises(type(error)):
                replay(spool, harness.streams, stop)
    assert (harness.seqs(), spool.waiting("prices"), spool.waiting("feed")) == ([1, 2, 3], 0, 3)
    if orphan:
        spool.close()
        spool = Spool(path, max_bytes=10**6)
    replay(spool, harness.streams, threading.Event())
    assert harness.seqs() == [1, 2, 3]
    assert [fields[b"number"] for _, fields in stored(harness.client, "prices:feed")] == [b"1", b"2", b"3"]


def test_appended_prices_survive_feed_events_the_spool_refuses(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise SpoolFullError("the disk is full")

    harness.client.set("prices:feed", "x")
    with monkeypatch.context() as full:
        full.setattr(harness.spool, "put", refuse)
        harness.put(2)
        harness.session.emit("alive", last_seq=2)
        harness.publish()
    harness.client.delete("prices:feed")
    harness.queue.close()
    harness.publisher.run()
    assert (harness.publisher.lost, harness.seqs(), harness.feed_events()) == (0, [1, 2], [("alive", {"last_seq": 2})])


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.booleans()), max_size=12),
    st.sampled_from([0, 400, 1_000, 10**6]),
)
def test_every_price_is_appended_once_or_recorded_as_lost(steps: list[tuple[bool, int, bool]], spool_max: int) -> None:
    """For any outages of Redis (`up`), any size of the spool and any times of replay."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder), spool_max=spool_max) as harness:
        for up, count, replayed in steps:
            harness.server.connected = up
            harness.put(count)
            if up and replayed:
                harness.replay()
            harness.publish()
        harness.server.connected = True
        harness.queue.close()
        harness.publisher.run()
        harness.replay()
        stored, lost = harness.seqs(), harness.lost()
        assert stored == sorted(stored)
        assert sorted(stored + lost) == [*range(1, harness.session.seq + 1)]
        assert (harness.publisher.lost, harness.publisher.appended + harness.publisher.spooled) == (
            len(lost),
            len(stored) + len(harness.feed_events()),
        )


# --- Replay


@contextmanager
def working(work: Callable[[], None], stop: threading.Event) -> Iterator[Future[None]]:
    """Run `work` in a thread until the end of the with statement."""
    thread = threads.in_thread(work)
    try:
        yield thread
    finally:
        stop.set()
        thread.result(timeout=PATIENCE)


def test_spool_is_replayed_after_every_redis_outage(harness: Harness) -> None:
    stop = threading.Event()
    replayer = Replayer(harness.spool, harness.streams, stop)
    with working(replayer.run, stop):
        for _ in range(2):
            harness.server.connected = False
            harness.put(3)
            harness.publish()
            harness.server.connected = True
            wait_for(lambda: harness.spool.entries == 0)
    assert harness.seqs() == [1, 2, 3, 4, 5, 6]


def test_blocked_replay_stops_on_request_and_keeps_its_entries(harness: Harness) -> None:
    harness.server.connected = False
    harness.put(3)
    harness.publish()
    stop = threading.Event()
    stop.set()
    with pytest.raises(OutageError):
        replay(harness.spool, harness.streams, stop)
    assert harness.seqs("spool") == [1, 2, 3]


def test_unanswered_append_is_retried(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.server.connected = False
    harness.put(2)
    harness.publish()
    harness.server.connected = True
    append, calls = harness.streams.append, iter([True])

    def unanswered(stream: str, entries: Sequence[Fields], **options: Any) -> bool:
        confirmed = append(stream, entries, **options)
        if next(calls, False):
            raise StreamOutageError("Timeout reading from socket")
        return confirmed

    monkeypatch.setattr(harness.streams, "append", unanswered)
    harness.replay()
    assert harness.seqs() == [1, 2, 1, 2]  # the database recognizes them by their numbers


def test_orphans_are_replayed_alongside_the_live_spool_and_removed(harness: Harness, tmp_path: Path) -> None:
    for n in (1, 2):
        orphan = Spool(spool_path(tmp_path, n), max_bytes=1000)
        orphan.put([Outgoing("prices", {"seq": str(n)}), Outgoing("feed", {"number": "1"})])
        orphan.close()
    (tmp_path / "0.spool").write_bytes(b"no database" * 100)  # a damaged spool must not end a producer
    harness.spool.put([Outgoing("prices", {"seq": "99"})])
    other: redis.Redis = fakeredis.FakeStrictRedis(server=harness.server, protocol=2)
    orphans = Streams(Stream(other, "prices"), Stream(other, "prices:feed"))
    replay_orphans(tmp_path, orphans, threading.Event())
    assert not spool_path(tmp_path, 2).exists()
    assert harness.seqs() == [1, 2]
    assert harness.seqs("spool") == [99]


def test_queue_is_above_its_watermark_long_before_it_is_full(tmp_path: Path) -> None:
    harness = Harness(tmp_path, bound=100)
    above = []
    for count in (10, 1):
        harness.put(count)
        above.append(harness.queue.above_watermark)
    harness.queue.take(timeout=0)
    assert [*above, harness.queue.above_watermark] == [False, True, False]
