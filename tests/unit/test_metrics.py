"""Metrics and health: each metric follows its events, and /healthz fails exactly during an outage."""

from __future__ import annotations

import json
import logging
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import fakeredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from websocket import ABNF

from common import clock, threads
from common.database.client import DatabaseClient
from common.errors import ConfigurationError, DatabaseOutageError, StreamOutageError
from common.metrics import Distribution, Health, Server, metric
from common.settings import Secret
from common.streams.channels import ChannelStreams
from common.streams.group import ConsumerGroup
from common.streams.stream import Stream
from consumer.liveness import Progress
from consumer.metrics import BacklogMonitor, BatchMetrics, ConsumerMetrics
from consumer.replay import Route
from consumer.tables import FEED, PRICES
from consumer.worker import Worker, WorkerConfig
from consumer.writer import Stored, Writer
from producer.config import FeedConfig
from producer.feed import Feed
from producer.feeds.twelvedata import TwelveData
from producer.metrics import ProducerMetrics
from producer.publisher import Publisher
from producer.queue import EventQueue
from producer.replay import replay
from producer.spool import Spool
from producer.spool_folder import spool_path
from producer.streams import Streams
from tests.support.faults import FaultySimulator
from tests.support.waiting import PATIENCE, wait_for
from tests.unit.conftest import StreamMaker
from tickpipe.simulator.config import SimulatorConfig

PAGE = Path(__file__).resolve().parents[2] / "docs/metrics.md"
START = 1_700_000_000_000_000
#: Seconds.
UNHEALTHY_AFTER = 60.0

Samples = dict[str, float]


def families(collector: Collector) -> list[Metric]:
    """The samples of a scrape."""
    registry = CollectorRegistry()
    registry.register(collector)
    return list(text_string_to_metric_families(generate_latest(registry).decode()))


def samples(collector: Collector) -> Samples:
    """All samples except buckets, as `name` or `name{value}`."""
    found = [sample for family in families(collector) for sample in family.samples if "le" not in sample.labels]
    return {sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value for sample in found}


def changed(before: Samples, after: Samples) -> Samples:
    """The changed samples and their differences."""
    return {name: value - before.get(name, 0.0) for name, value in after.items() if value != before.get(name, 0.0)}


# --- The producer


class Producer:
    """A producer without websocket and threads, with a manual clock."""

    def __init__(self, folder: Path, *, spool_max: int = 10**6, queue_max: int = 100) -> None:
        self.now = 1000.0
        self.redis = fakeredis.FakeServer()
        self.queue = EventQueue(queue_max)
        self.feed = Feed(
            FeedConfig(url="ws://feed.example/"),
            api_key=lambda: Secret("key"),
            symbols=["AAPL"],
            queues=[self.queue],
            clock=lambda: START,
            monotonic=lambda: self.now,
        )
        self.feed.channels.begin(START, ["AAPL"])
        self.paths = {path: self._streams() for path in ("direct", "spool", "orphan")}
        self.spool = Spool(spool_path(folder, START), max_bytes=spool_max)
        self.publisher = Publisher(
            self.queue, self.paths["direct"], self.spool, TwelveData(), monotonic=lambda: self.now
        )
        self.metrics = ProducerMetrics(
            self.feed,
            [cast("Any", self)],
            lambda: self.paths["orphan"].appended,
            unhealthy_after=UNHEALTHY_AFTER,
            monotonic=lambda: self.now,
        )
        self.publish()  # `started`

    def _streams(self) -> Streams:
        client = fakeredis.FakeStrictRedis(server=self.redis, protocol=2)
        return Streams(Stream(client, "prices"), Stream(client, "prices:feed"))

    def hear(self, event: str, **fields: str) -> None:
        self.feed._on_frame(ABNF.OPCODE_TEXT, json.dumps({"event": event, **fields}).encode())

    def receive(self, count: int) -> None:
        for _ in range(count):
            self.hear("price", symbol="AAPL", timestamp="1", price="2.50")

    def publish(self) -> None:
        while batch := self.queue.take(timeout=0):
            self.publisher.publish(batch)

    def replay(self) -> None:
        replay(self.spool, self.paths["spool"], threading.Event())

    @property
    def reasons(self) -> list[str]:
        return list(self.metrics.health().reasons)


@contextmanager
def producing(folder: Path, **options: int) -> Iterator[Producer]:
    producer = Producer(folder, **options)
    try:
        yield producer
    finally:
        producer.spool.close()


@pytest.fixture
def producer(tmp_path: Path) -> Iterator[Producer]:
    with producing(tmp_path) as one:
        yield one


def test_producer_counts_received_appended_and_spooled_events(producer: Producer) -> None:
    before = samples(producer.metrics)
    producer.receive(3)
    producer.publish()
    after = samples(producer.metrics)
    assert changed(before, after) == {
        "tickpipe_events_received_total": 3,
        "tickpipe_events_appended_total{direct}": 3,
    }
    producer.redis.connected = False
    producer.receive(2)
    producer.feed.channels.emit("alive", START)
    producer.publish()
    before, after = after, samples(producer.metrics)
    assert changed(before, after) == {
        "tickpipe_events_received_total": 2,
        "tickpipe_entries_spooled_total": 3,
        "tickpipe_spool_entries": 3,
    }
    producer.redis.connected = True
    producer.replay()
    producer.paths["orphan"].append("prices", [{"n": "1"}])
    producer.feed._on_frame(ABNF.OPCODE_TEXT, b"no JSON")
    assert changed(after, samples(producer.metrics)) == {
        "tickpipe_events_appended_total{spool}": 2,
        "tickpipe_events_appended_total{orphan}": 1,
        "tickpipe_spool_entries": -3,
        "tickpipe_frames_skipped_total": 1,
    }


def test_lost_events_are_counted_by_place(tmp_path: Path) -> None:
    with producing(tmp_path, spool_max=0, queue_max=5) as producer:
        before = samples(producer.metrics)
        producer.redis.connected = False
        producer.receive(7)
        producer.publish()
        lost = {
            name: value for name, value in changed(before, samples(producer.metrics)).items() if "events_lost" in name
        }
    assert sum(lost.values()) == 7
    assert 0 < lost["tickpipe_events_lost_total{queue}"] < 7


def test_reconnects_and_connection_state_are_measured() -> None:
    stop = threading.Event()
    with FaultySimulator(SimulatorConfig(rate=50)) as simulator:
        feed = Feed(
            FeedConfig(url=simulator.url),
            api_key=lambda: Secret("key"),
            symbols=["AAPL"],
            queues=[EventQueue(10**6)],
            clock=clock.microseconds,
        )
        seen = ProducerMetrics(feed, [cast("Any", _Anything())], lambda: 0, unhealthy_after=UNHEALTHY_AFTER)

        def connected() -> tuple[float, float]:
            found = samples(seen)
            return found["tickpipe_feed_connected"], found["tickpipe_feed_reconnects_total"]

        assert connected() == (0, 0)
        running = threads.in_thread(feed.run, stop)
        wait_for(lambda: connected() == (1, 0))
        simulator.hang_handshakes(on=True)
        simulator.close_all()
        wait_for(lambda: connected() == (0, 0))
        simulator.hang_handshakes(on=False)
        wait_for(lambda: connected() == (1, 1))
        stop.set()
        running.result(timeout=PATIENCE)


class _Anything:
    """An unused delivery, with its publisher, spool and streams."""

    entries = spooled = lost = appended = 0
    refused, refused_at = "", float("-inf")

    def __init__(self) -> None:
        self.publisher = self.spool = self
        self.paths = {"direct": self, "spool": self}


def test_producer_is_unhealthy_without_messages_until_the_next(producer: Producer) -> None:
    assert producer.reasons == []
    producer.now += UNHEALTHY_AFTER
    assert producer.reasons == []
    producer.now += 1
    assert producer.reasons == ["no message from feed.example for 61 s: no connection yet"]
    stop = threading.Event()
    stop.set()
    producer.feed._pause(stop, ConnectionRefusedError("Connection refused"), lasted=0.0, evicted=False)
    assert producer.reasons == ["no message from feed.example for 61 s: Connection refused"]
    producer.feed._on_frame(ABNF.OPCODE_PONG, b"")  # the host answers, the feed does not
    assert len(producer.reasons) == 1
    producer.hear("heartbeat")
    assert producer.reasons == []


def test_a_quiet_market_is_healthy(producer: Producer) -> None:
    for _ in range(360):
        producer.now += 10
        producer.hear("heartbeat")
        assert producer.reasons == []


def test_prices_without_heartbeat_answers_count_as_alive(producer: Producer) -> None:
    for _ in range(20):
        producer.now += 10
        producer.receive(1)
        assert producer.reasons == []


def test_spooling_is_healthy_and_reported(producer: Producer) -> None:
    producer.redis.connected = False
    producer.receive(2)
    producer.publish()
    entries = producer.spool.entries
    assert producer.metrics.health() == Health([], [f"spooling: {entries} entries wait on disk for Redis"])
    producer.redis.connected = True
    producer.replay()
    assert producer.metrics.health() == Health([], [])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"queue_max": 5}, r"the queue is full \(--queue-max\): \d price events lost so far"),
        ({"spool_max": 0}, r"the spool .* is full at 0 bytes \(--spool-max\): 7 price events lost so far"),
    ],
    ids=["queue", "spool"],
)
def test_lost_prices_are_unhealthy_for_a_while(tmp_path: Path, options: dict[str, int], reason: str) -> None:
    with producing(tmp_path, **options) as producer:
        producer.redis.connected = False
        producer.receive(7)
        producer.publish()
        (found,) = producer.reasons
        assert re.fullmatch(reason, found)
        producer.redis.connected = True
        producer.replay()
        producer.now += UNHEALTHY_AFTER - 1
        producer.hear("heartbeat")
        assert len(producer.reasons) == 1
        producer.now += 1
        assert producer.reasons == []


# --- The consumer


class Consumer:
    """A consumer with a Redis in memory, a scripted database and a manual clock."""

    def __init__(self, make_stream: StreamMaker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.on_insert: Callable[[], None] = lambda: None
        self.stored = Stored(0, 0, 0)
        monkeypatch.setattr(Writer, "insert_batch", self._insert_batch)
        monkeypatch.setattr(Writer, "ping", lambda _: False)
        self.batches = BatchMetrics()
        self.prices, self.feed = make_stream("prices"), make_stream("prices:feed")
        self.stop = threading.Event()
        self.worker = Worker(
            [Route(self.prices, PRICES), Route(self.feed, FEED)],
            Writer(DatabaseClient(Secret("postgresql://nowhere/"))),
            WorkerConfig(drain=True, max_batch_size=10, poll=0.01),
            stop=self.stop,
            clock=lambda: START + 2_000_000,
            monotonic=lambda: self.now,
            on_batch=self.batches.observe,
        )
        self.backlog = BacklogMonitor(ChannelStreams(make_stream, "prices"))
        self.metrics = ConsumerMetrics(
            lambda: self.worker.totals,
            lambda: [self.worker.progress],
            self.batches,
            self.backlog,
            unhealthy_after=UNHEALTHY_AFTER,
        )

    def _insert_batch(self, *_: object, **__: object) -> Stored:
        self.on_insert()
        return self.stored

    def append(self, count: int, stream: ConsumerGroup | None = None) -> None:
        (stream or self.prices).append([{"seq": str(n), "received": str(START)} for n in range(count)])

    @property
    def reasons(self) -> Sequence[str]:
        return self.metrics.health().reasons


@pytest.fixture
def consumer(make_stream: StreamMaker, monkeypatch: pytest.MonkeyPatch, impatient: None) -> Consumer:  # noqa: ARG001
    return Consumer(make_stream, monkeypatch)


def test_consumer_counts_and_measures_stored_rows(consumer: Consumer) -> None:
    def take_time() -> None:
        consumer.now += 0.25

    consumer.append(9)
    consumer.append(3, consumer.feed)  # not counted
    consumer.stored, consumer.on_insert = Stored(6, 2, 1), take_time
    before = samples(consumer.metrics)
    consumer.worker.run()
    assert changed(before, samples(consumer.metrics)) == {
        "tickpipe_rows_stored_total": 6,
        "tickpipe_duplicates_total": 2,
        "tickpipe_dead_letters_total": 1,
        "tickpipe_batch_entries_count": 1,
        "tickpipe_batch_entries_sum": 9,
        "tickpipe_insert_seconds_count": 1,
        "tickpipe_insert_seconds_sum": 0.25,
        "tickpipe_latency_seconds_count": 6,  # one for each new row
        "tickpipe_latency_seconds_sum": 6 * 2.0,
    }


def test_refused_batch_is_not_measured(consumer: Consumer) -> None:
    tries = iter([True, True])

    def away() -> None:
        if next(tries, False):
            raise DatabaseOutageError

    consumer.append(9)
    consumer.stored, consumer.on_insert = Stored(9, 0, 0), away
    consumer.worker.run()
    found = samples(consumer.metrics)
    assert (found["tickpipe_insert_seconds_count"], found["tickpipe_latency_seconds_count"]) == (1, 9)


def test_clock_differences_do_not_give_negative_latency(consumer: Consumer) -> None:
    consumer.prices.append([{"received": str(START + 60_000_000)}, {"received": "soon"}])
    consumer.stored = Stored(2, 0, 0)
    consumer.worker.run()
    found = samples(consumer.metrics)
    assert (found["tickpipe_latency_seconds_count"], found["tickpipe_latency_seconds_sum"]) == (2, 0)


def test_lag_and_pending_keep_their_values_during_a_redis_outage(
    consumer: Consumer, redis_server: fakeredis.FakeServer
) -> None:
    consumer.prices.ensure_group()
    consumer.feed.ensure_group()
    consumer.append(5)
    consumer.append(2, consumer.feed)
    consumer.prices.read(3)
    assert samples(consumer.metrics)["tickpipe_redis_up"] == 0  # not measured yet
    consumer.backlog.update()
    wanted = {
        "tickpipe_lag_entries{prices}": 2,
        "tickpipe_lag_entries{feed}": 2,
        "tickpipe_pending_entries{prices}": 3,
        "tickpipe_pending_entries{feed}": 0,
        "tickpipe_redis_up": 1,
    }
    found = samples(consumer.metrics)
    assert {name: found[name] for name in wanted} == wanted
    redis_server.connected = False
    consumer.backlog.update()
    assert changed(found, samples(consumer.metrics)) == {"tickpipe_redis_up": -1}


def test_backlog_is_polled_until_stopped(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.metrics.BACKLOG_EVERY", 0.01)
    consumer.prices.ensure_group()
    consumer.feed.ensure_group()
    running = threads.in_thread(consumer.backlog.run, consumer.stop)
    wait_for(lambda: consumer.backlog.up)
    consumer.append(5)
    wait_for(lambda: consumer.backlog.backlogs["prices"].lag == 5)
    consumer.stop.set()
    running.result(timeout=PATIENCE)


def test_consumer_is_unhealthy_during_a_database_outage(consumer: Consumer) -> None:
    seen: list[tuple[Sequence[str], float]] = []

    def away() -> None:
        seen.append((consumer.reasons, samples(consumer.metrics)["tickpipe_database_up"]))
        consumer.now += 5
        if len(seen) < 4:
            raise DatabaseOutageError("the database: away")

    consumer.append(3)
    consumer.on_insert = away
    consumer.worker.run()
    assert seen == [
        ([], 1),
        (["the database: away (failing for 0 s)"], 0),
        (["the database: away (failing for 5 s)"], 0),
        (["the database: away (failing for 10 s)"], 0),
    ]
    assert (consumer.reasons, samples(consumer.metrics)["tickpipe_database_up"]) == ([], 1)


def test_consumer_is_unhealthy_during_a_redis_outage(consumer: Consumer, redis_server: fakeredis.FakeServer) -> None:
    redis_server.connected = False
    running = threads.in_thread(consumer.worker.run)
    wait_for(lambda: consumer.reasons)
    assert consumer.reasons[0].startswith("Redis: ")
    assert consumer.reasons[0].endswith("(failing for 0 s)")
    assert samples(consumer.metrics)["tickpipe_database_up"] == 1
    redis_server.connected = True
    running.result(timeout=PATIENCE)
    assert consumer.reasons == []


def test_hanging_consumer_becomes_unhealthy(consumer: Consumer) -> None:
    seen = []

    def hang() -> None:
        for seconds in (UNHEALTHY_AFTER, 1):
            consumer.now += seconds
            seen.append(consumer.reasons)

    consumer.append(3)
    consumer.on_insert = hang
    consumer.worker.run()
    assert seen == [[], ["stuck: no batch stored and no turn of the loop done for 61 s"]]
    assert consumer.reasons == []


def test_recovered_batches_count_as_progress(consumer: Consumer) -> None:
    seen = []

    def take_time() -> None:
        seen.append(consumer.reasons)
        consumer.now += UNHEALTHY_AFTER

    consumer.prices.ensure_group()
    consumer.append(50)
    consumer.prices.read(50)
    consumer.on_insert = take_time
    consumer.worker.run()
    assert seen == [[]] * 5


def test_different_error_starts_a_new_outage() -> None:
    now = 1000.0
    progress = Progress(lambda: now)
    progress.failed(StreamOutageError("Redis: away"))
    now += 7
    assert progress.reasons(UNHEALTHY_AFTER) == ["Redis: away (failing for 7 s)"]
    progress.failed(DatabaseOutageError("the database: away"))  # Redis has answered
    assert progress.reasons(UNHEALTHY_AFTER) == ["the database: away (failing for 0 s)"]
    progress.made()
    assert progress.reasons(UNHEALTHY_AFTER) == []


# --- Shared


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 5))))
def test_distribution_is_a_prometheus_histogram(observed: list[tuple[float, int]]) -> None:
    bounds = [0.5, 1, 2, 5, 10]
    ours, theirs = (
        Distribution("a_seconds", "Text.", bounds),
        Histogram("a_seconds", "Text.", buckets=bounds, registry=None),
    )
    for value, times in observed:
        ours.observe(value, times)
        for _ in range(times):
            theirs.observe(value)
    wanted = [sample for sample in next(iter(theirs.collect())).samples if not sample.name.endswith("_created")]
    found = {(sample.name, *sample.labels.values()): sample.value for sample in ours.metric().samples}
    assert found == {(sample.name, *sample.labels.values()): pytest.approx(sample.value) for sample in wanted}


class Anything(Collector):
    """Returns one number or fails."""

    def __init__(self) -> None:
        self.fails = False
        self.told = Health([])

    def health(self) -> Health:
        return self.told

    def collect(self) -> Iterator[Metric]:
        if self.fails:
            raise RuntimeError("a fault of ours")
        yield metric("a_total", "Text.", 1)
        yield metric("b", "Text.", {"x": 2, "y": 3}, "label")


@pytest.fixture
def collector() -> Anything:
    return Anything()


@pytest.fixture
def server(collector: Anything) -> Iterator[Server]:
    with Server("127.0.0.1", 0) as server:
        server.serve(collector, collector.health)
        yield server
        server.shutdown()


def get(server: Server, path: str) -> tuple[int, str]:
    """Status and body of the response."""
    host, port = server.server_address[:2]
    try:
        with urllib.request.urlopen(f"http://{host!s}:{port}{path}", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_are_served(server: Server) -> None:
    status, text = get(server, "/metrics")
    assert status == 200
    assert "# TYPE a_total counter\na_total 1.0\n" in text
    assert '# TYPE b gauge\nb{label="x"} 2.0\nb{label="y"} 3.0\n' in text
    assert "a_total" not in get(server, "/metrics?name[]=b")[1]
    assert get(server, "/")[0] == 404


def test_health_has_a_status_and_one_line_per_reason(server: Server, collector: Anything) -> None:
    assert get(server, "/healthz") == (200, "ok\n")
    collector.told = Health([], ["spooling"])
    assert get(server, "/healthz") == (200, "ok\nspooling\n")
    collector.told = Health(["the database:\n\taway", "no word"], ["spooling"])
    assert get(server, "/healthz") == (503, "the database: away\nno word\nspooling\n")
    collector.told = Health([])
    assert get(server, "/healthz") == (200, "ok\n")


def test_error_in_a_response_is_logged_and_the_server_continues(
    server: Server, collector: Anything, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    collector.fails = True
    with pytest.raises(OSError, match="closed connection"):
        get(server, "/metrics")
    wait_for(lambda: "a fault of ours" in caplog.text)
    assert [record.exc_info for record in caplog.records if record.levelno == logging.WARNING] == [None]
    assert capsys.readouterr().err == ""
    assert get(server, "/healthz") == (200, "ok\n")


def test_port_in_use_is_refused(server: Server) -> None:
    port = server.server_address[1]
    with pytest.raises(ConfigurationError, match=rf"--metrics-port {port} on 127\.0\.0\.1 cannot be opened: Address"):
        Server("127.0.0.1", port)


def test_unknown_host_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"--metrics-port 1 on 256\.0\.0\.1 cannot be opened: "):
        Server("256.0.0.1", 1)


# --- Documentation


def table() -> dict[str, dict[str, tuple[str, str, str]]]:
    """The documented table: type, label and meaning of each metric by process."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (\w+) \| (?:`(\w+)` )?\| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {
        process: {name: (kind, label, text) for name, of, kind, label, text in rows if of in {process, "both"}}
        for process in ("producer", "consumer")
    }


def exposed(collector: Collector) -> dict[str, tuple[str, str, str]]:
    found: dict[str, Any] = {}
    for family in families(collector):
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, ",".join(labels), family.documentation)
    return found


def test_metrics_match_the_documented_table(producer: Producer, consumer: Consumer) -> None:
    consumer.prices.ensure_group()
    consumer.feed.ensure_group()
    consumer.backlog.update()
    assert exposed(producer.metrics) == table()["producer"]
    assert exposed(consumer.metrics) == table()["consumer"]


def test_names_follow_prometheus_conventions() -> None:
    for name, (kind, _, text) in (table()["producer"] | table()["consumer"]).items():
        assert re.fullmatch(r"tickpipe_[a-z_]+", name)
        assert name.endswith("_total") == (kind == "counter")
        assert ("seconds" in text.lower()) == name.endswith("_seconds")
