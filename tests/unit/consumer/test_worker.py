"""The consumer's loop: nothing is acked before it is stored, and nothing is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import count
from typing import cast

import fakeredis
import pytest
import redis

from common import threads
from common.errors import ConfigurationError, DatabaseOutageError, OutageError, StreamOutageError, TickpipeError
from common.streams.group import ConsumerGroup
from common.streams.statistics import ConsumerStatistics
from common.streams.stream import Entry
from consumer.replay import Replayer, Route
from consumer.tables import FEED, PRICES, TableWriter
from consumer.worker import BISECT_AFTER, Worker, WorkerConfig
from consumer.writer import Stored, Writer
from tests.support.waiting import PATIENCE, wait_for
from tests.unit.conftest import StreamMaker, stored

pytestmark = pytest.mark.usefixtures("impatient")


class Store:
    """Keeps what it is given. `on_insert` may look, or raise, before it does; `pending` is asked at that moment."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.bisected: list[bool] = []
        self.pending: list[int] = []
        self.answers = True
        self.on_insert: Callable[[], None] = lambda: None
        self.ask_pending: Callable[[], int] = lambda: 0

    def insert_batch(
        self, table: TableWriter, stream: str, entries: Sequence[Entry], *, bisect: bool = False
    ) -> Stored:
        assert table is (FEED if stream.endswith(":feed") else PRICES)
        self.bisected.append(bisect)
        self.pending.append(self.ask_pending())
        self.on_insert()
        self.batches.append((stream, [int(entry.fields[b"seq"]) for entry in entries if entry.fields]))
        return Stored(len(entries), 0, 0)

    def ping(self) -> bool:
        return self.answers

    @property
    def seqs(self) -> list[int]:
        """Of the prices, in the order they were stored."""
        return [seq for stream, batch in self.batches for seq in batch if stream == "prices"]


class Replays:
    """Stands for a Replayer: gives these results in turn, and the last one again."""

    def __init__(self, results: Sequence[bool | Exception]) -> None:
        self._results = list(results)

    def check(self, on_batch: Callable[[], None]) -> bool:
        on_batch()
        result = self._results.pop(0) if len(self._results) > 1 else self._results[0]
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def stream(make_stream: StreamMaker, store: Store) -> ConsumerGroup:
    stream = make_stream(consumer="looking on")
    stream.ensure_group()
    store.ask_pending = stream.pending
    return stream


@pytest.fixture
def make_worker(make_stream: StreamMaker, store: Store, stop: threading.Event) -> Callable[..., Worker]:
    def make(
        *,
        drain: bool = True,
        max_batch_size: int = 10,
        claim_idle: float = 30.0,
        name: str = "me",
        replayer: Replays | None = None,
        stream_keep: float = 0.0,
    ) -> Worker:
        lanes = [
            Route(make_stream("prices", consumer=name), PRICES),
            Route(make_stream("prices:feed", consumer=name), FEED),
        ]
        config = WorkerConfig(
            drain=drain, max_batch_size=max_batch_size, claim_idle=claim_idle, poll=0.01, stream_keep=stream_keep
        )
        writer, replays = cast("Writer", store), cast("Replayer | None", replayer)
        return Worker(lanes, writer, config, stop=stop, clock=lambda: 3_000_000, replayer=replays)

    return make


MakeWorker = Callable[..., Worker]


def fill(stream: ConsumerGroup, first: int, last: int) -> None:
    stream.append([{"seq": str(n), "received": "1000000"} for n in range(first, last + 1)])


# --- What is read, and when


def test_both_streams_are_stored_in_order_in_batches_and_acked(
    make_worker: MakeWorker, make_stream: StreamMaker, stream: ConsumerGroup, store: Store
) -> None:
    fill(stream, 1, 25)
    fill(make_stream("prices:feed"), 1, 2)
    worker = make_worker()
    worker.run()
    assert [batch for name, batch in store.batches if name == "prices"] == [
        [*range(1, 11)],
        [*range(11, 21)],
        [*range(21, 26)],
    ]
    assert ("prices:feed", [1, 2]) in store.batches
    assert stream.backlog()[2:4] == (0, 0)
    assert (worker.totals.stored, worker.totals.batches) == (25, 3)


def test_own_pending_entries_are_processed_first(
    make_worker: MakeWorker, make_stream: StreamMaker, stream: ConsumerGroup, store: Store
) -> None:
    fill(stream, 1, 25)
    make_stream(consumer="me").read(12)  # and was killed
    make_worker().run()
    assert [batch for _, batch in store.batches] == [[*range(1, 11)], [11, 12], [*range(13, 23)], [23, 24, 25]]
    assert stream.pending() == 0


def test_entries_of_idle_consumers_are_claimed(
    make_worker: MakeWorker, make_stream: StreamMaker, stream: ConsumerGroup, store: Store
) -> None:
    fill(stream, 1, 25)
    make_stream(consumer="dead").read(12)
    make_worker(claim_idle=0.1).run()  # a drain waits for it
    assert sorted(store.seqs) == [*range(1, 26)]
    assert stream.pending() == 0


def test_drain_ends_only_when_nothing_is_pending(
    make_worker: MakeWorker,
    make_stream: StreamMaker,
    stream: ConsumerGroup,
    store: Store,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    fill(stream, 1, 3)
    slow = make_stream(consumer="slow")
    held = slow.read(1)
    draining = threads.in_thread(make_worker(claim_idle=1.0).run)
    wait_for(lambda: "1 entry pending on other consumers" in caplog.text)
    assert store.seqs == [2, 3]
    assert not draining.done()
    slow.ack([entry.id for entry in held])
    draining.result(timeout=PATIENCE)
    assert store.seqs == [2, 3]


def test_entry_deleted_while_pending_is_acked(
    make_worker: MakeWorker, make_stream: StreamMaker, stream: ConsumerGroup, store: Store, redis_client: redis.Redis
) -> None:
    fill(stream, 1, 2)
    redis_client.xdel("prices", make_stream(consumer="me").read(2)[0].id)
    make_worker().run()
    assert (store.seqs, stream.pending()) == ([2], 0)


# --- Only what is stored is acked


def test_entries_are_acked_after_they_are_stored(make_worker: MakeWorker, stream: ConsumerGroup, store: Store) -> None:
    fill(stream, 1, 25)
    make_worker().run()
    # Each complete batch during its insert, and the next one, which is read at the same time.
    least, most = [10, 10, 5], [20, 25, 15]
    assert [sorted(three)[1] for three in zip(least, store.pending, most, strict=True)] == store.pending


def test_full_batch_is_written_while_the_next_is_read(
    make_worker: MakeWorker, stream: ConsumerGroup, store: Store
) -> None:
    fill(stream, 1, 25)

    def read_meanwhile() -> None:
        wait_for(lambda: stream.pending() >= min(20, 25 - len(store.seqs)))

    store.on_insert = read_meanwhile
    make_worker().run()
    assert store.seqs == [*range(1, 26)]
    assert stream.pending() == 0


def test_batch_is_kept_and_retried_during_an_outage(
    make_worker: MakeWorker, stream: ConsumerGroup, store: Store
) -> None:
    tries = count(1)
    fill(stream, 1, 3)

    def away() -> None:
        if next(tries) < 6:
            raise DatabaseOutageError("the database: away")

    store.answers, store.on_insert = False, away
    make_worker().run()
    assert store.pending == [3] * 6  # not acked in between
    assert (store.seqs, stream.pending()) == ([1, 2, 3], 0)
    assert store.bisected == [False] * 6  # it was the database, not the batch


def test_batch_that_fails_while_the_database_responds_is_bisected(
    make_worker: MakeWorker, stream: ConsumerGroup, store: Store
) -> None:
    def fail() -> None:
        if not store.bisected[-1]:
            raise DatabaseOutageError("the database: index row size exceeds maximum")

    fill(stream, 1, 13)
    store.on_insert = fail
    make_worker().run()
    assert store.bisected == ([False] * BISECT_AFTER + [True]) * 2  # each batch by itself
    assert store.seqs == [*range(1, 14)]


# --- Stopping


def test_stop_finishes_the_current_batch_and_leaves_the_group(
    make_worker: MakeWorker, stream: ConsumerGroup, store: Store, stop: threading.Event
) -> None:
    fill(stream, 1, 25)
    store.on_insert = stop.set
    make_worker(drain=False).run()
    assert store.seqs == [*range(1, 21)]  # that batch, and the next one, which was read already
    assert stream.backlog()[2:] == (5, 0, 0, 0)  # 5 unread, none pending, no consumer's name


def test_stop_finishes_every_claimed_batch(
    make_worker: MakeWorker, make_stream: StreamMaker, stream: ConsumerGroup, store: Store, stop: threading.Event
) -> None:
    fill(stream, 1, 25)
    make_stream(consumer="dead").read(25)
    store.on_insert = stop.set
    make_worker(drain=False, claim_idle=0.0).run()
    assert sorted(store.seqs) == [*range(1, 26)]
    assert stream.pending() == 0


def test_stop_during_a_database_outage_leaves_the_batch_pending(
    make_worker: MakeWorker, make_stream: StreamMaker, stream: ConsumerGroup, store: Store, stop: threading.Event
) -> None:
    def away() -> None:
        stop.set()
        raise DatabaseOutageError("the database: away")

    fill(stream, 1, 3)
    store.on_insert = away
    with pytest.raises(OutageError):
        make_worker(drain=False).run()
    assert len(make_stream(consumer="me").read_own_pending(9)) == 3


# --- Outages and lost state of Redis


def test_redis_outage_is_waited_out_and_pending_entries_are_recovered(
    make_worker: MakeWorker,
    stream: ConsumerGroup,
    store: Store,
    redis_server: fakeredis.FakeServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Redis fails between the insert and the ack."""
    store.ask_pending = lambda: 0
    away = iter([True])

    def go_away() -> None:
        redis_server.connected = not next(away, False)

    fill(stream, 1, 3)
    store.on_insert = go_away
    draining = threads.in_thread(make_worker().run)
    wait_for(lambda: "; try 2, next in" in caplog.text)  # and goes on trying
    redis_server.connected = True
    draining.result(timeout=PATIENCE)
    assert store.seqs == [1, 2, 3, 1, 2, 3]  # again: the database knows them
    assert stream.pending() == 0


def test_lost_group_is_recreated_at_the_start_of_the_stream(
    make_worker: MakeWorker, stream: ConsumerGroup, store: Store, redis_client: redis.Redis
) -> None:
    lost = iter([True])

    def lose() -> None:
        if next(lost, False):
            redis_client.xgroup_destroy("prices", "g")

    fill(stream, 1, 8)
    store.ask_pending = lambda: 0
    store.on_insert = lose
    make_worker().run()
    assert store.seqs == [*range(1, 9), *range(1, 9)]


def test_full_redis_that_refuses_reports_does_not_stop_the_worker(
    make_worker: MakeWorker, stream: ConsumerGroup, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StreamOutageError("Redis: OOM command not allowed")

    monkeypatch.setattr(ConsumerStatistics, "publish", refuse)
    fill(stream, 1, 15)
    make_worker().run()
    assert store.seqs == [*range(1, 16)]
    assert stream.backlog()[2:] == (0, 0, 0, 0)  # and it has left


@pytest.mark.parametrize("error", [StreamOutageError("WRONGTYPE"), ConfigurationError("NOPERM")])
def test_refused_statistics_are_logged_once_and_work_continues(
    make_worker: MakeWorker,
    stream: ConsumerGroup,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: TickpipeError,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    for name in ("publish", "prune"):
        monkeypatch.setattr(ConsumerStatistics, name, refuse)
    fill(stream, 1, 15)
    worker = make_worker()
    worker._report()
    worker.run()
    worker._report()
    assert store.seqs == [*range(1, 16)]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [f"consumer statistics not written: {error}"] * 2  # to write them, and to remove old ones


# --- Other work


def test_worker_publishes_its_statistics(make_worker: MakeWorker, stream: ConsumerGroup) -> None:
    fill(stream, 1, 5)
    make_worker(name="one").run()
    report = stream.statistics.read()["one"]
    assert {name: report[name] for name in ("stored", "duplicates", "dead_letters", "batches", "at")} == {
        "stored": 5,
        "duplicates": 0,
        "dead_letters": 0,
        "batches": 1,
        "at": 3_000_000,
    }
    assert report["latency_p50"] == report["latency_p99"] == 2.0  # received at 1 s, stored at 3 s


def test_stream_is_trimmed_up_to_the_slowest_group(
    make_worker: MakeWorker, stream: ConsumerGroup, redis_client: redis.Redis
) -> None:
    fill(stream, 1, 5)
    stream.ack([entry.id for entry in stream.read(4)])
    make_worker().run()
    assert [int(fields[b"seq"]) for _, fields in stored(redis_client)] == [4, 5]


@pytest.mark.parametrize("unfinished", [False, DatabaseOutageError("gone")], ids=["another replays", "outage"])
def test_entries_stay_while_the_database_may_lack_them(
    make_worker: MakeWorker,
    stream: ConsumerGroup,
    redis_client: redis.Redis,
    stop: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    unfinished: bool | Exception,
) -> None:
    """A replay needs them, however old they are."""
    monkeypatch.setattr(ConsumerGroup, "is_nearly_full", lambda _: False)  # fakeredis has no INFO
    fill(stream, 1, 5)
    worker = make_worker(replayer=Replays([unfinished, True]), stream_keep=1e-9, drain=False)
    working = threads.in_thread(worker.run)
    wait_for(lambda: worker.totals.stored == 5)
    stop.set()
    working.result(timeout=PATIENCE)
    assert len(stored(redis_client)) == 5
    stop.clear()
    make_worker(replayer=Replays([True]), stream_keep=1e-9).run()
    assert len(stored(redis_client)) == 1


def test_drain_ends_only_when_the_database_has_everything(
    make_worker: MakeWorker, stream: ConsumerGroup, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fill(stream, 1, 5)
    make_worker(replayer=Replays([False, True])).run()
    assert "not all stored again yet" in caplog.text
    assert store.seqs == [1, 2, 3, 4, 5]
