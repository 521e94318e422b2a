"""The workers of one consumer process: one for each channel, and the process that runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from unittest.mock import Mock

import fakeredis
import pytest
import redis

from common import process, threads
from common.channels import channel_key, feed_key
from common.database import migrations
from common.errors import ConfigurationError, OutageError
from common.metrics import Server
from common.settings import Secret
from common.streams import channels
from common.streams.group import ConsumerGroup
from common.streams.registry import ChannelRegistry
from common.streams.stream import Entry, Stream
from consumer import app, team
from consumer.tables import TableWriter
from consumer.team import ConsumerConfig, Team
from consumer.worker import WorkerConfig
from consumer.writer import Stored
from tests.support.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.usefixtures("impatient")


class Rows:
    """Stands for the writers of all workers."""

    def __init__(self) -> None:
        self.rows: set[tuple[str, bytes]] = set()
        self.on_insert: Callable[[str], None] = lambda _: None

    def make(self, _: object) -> Rows:
        return self

    def check_rights(self) -> None:
        """See Writer."""

    def ping(self) -> bool:
        """See Writer."""
        return True

    def insert_batch(self, _: TableWriter, stream: str, entries: Sequence[Entry], *, bisect: bool = False) -> Stored:  # noqa: ARG002
        """See Writer."""
        self.on_insert(stream)
        self.rows |= {(stream, entry.id) for entry in entries}
        return Stored(len(entries), 0, 0)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, redis_server: fakeredis.FakeServer) -> Rows:
    rows = Rows()
    monkeypatch.setattr(
        channels, "connect", lambda *_: fakeredis.FakeStrictRedis(server=redis_server, protocol=2)
    )  # fmt: skip
    monkeypatch.setattr(team, "Writer", rows.make)
    monkeypatch.setattr(team, "DatabaseClient", Mock())
    monkeypatch.setattr(team, "read_timeline", lambda _: None)
    monkeypatch.setattr(migrations, "apply", lambda _: [])
    # A Redis in memory does not know all commands that are checked.
    monkeypatch.setattr(ConsumerGroup, "check_consume", ConsumerGroup.check)
    monkeypatch.setattr(ConsumerGroup, "check_replay", lambda _: None)
    monkeypatch.setattr(ConsumerGroup, "is_nearly_full", lambda _: False)
    monkeypatch.setattr(team, "SEARCH_EVERY", 0.2)
    return rows


def config(*numbers: int, drain: bool = False) -> ConsumerConfig:
    worker = WorkerConfig(poll=0.01, drain=drain, claim_idle=0.1)
    secret = Secret("redis://nowhere/")
    return ConsumerConfig(
        redis_url=secret, database_url=secret, name="me", channels=numbers or None, worker=worker, group="g"
    )


def append(client: redis.Redis, key: str, count: int) -> None:
    Stream(client, key).append([{"session": "1", "seq": str(seq), "received": "1"} for seq in range(count)])


def register(client: redis.Redis, count: int) -> list[str]:
    keys = [channel_key("prices", channel) for channel in range(count)]
    ChannelRegistry(Stream(client, "prices")).add(keys)
    return keys


def test_drain_stores_every_channel(rows: Rows, redis_client: redis.Redis) -> None:
    keys = register(redis_client, 3)
    for number, key in enumerate(keys, 1):
        append(redis_client, key, 10 * number)
        append(redis_client, feed_key(key), 1)
    working = Team(config(drain=True), threading.Event(), lambda _: None)
    working.run()
    assert working.totals.stored == 60
    assert len(rows.rows) == 63
    assert all(redis_client.xpending(key, "g")["pending"] == 0 for key in keys)


def test_only_named_channels_are_stored(rows: Rows, redis_client: redis.Redis) -> None:
    for key in register(redis_client, 3):
        append(redis_client, key, 5)
    Team(config(0, 2, drain=True), threading.Event(), lambda _: None).run()
    assert {stream for stream, _ in rows.rows} == {"prices:{0}", "prices:{2}"}


def test_channels_are_found_while_the_team_works(rows: Rows, redis_client: redis.Redis) -> None:
    stop = threading.Event()
    working = Team(config(), stop, lambda _: None)
    running = threads.in_thread(working.run)
    append(redis_client, "prices", 3)
    wait_for(lambda: working.totals.stored == 3)
    append(redis_client, register(redis_client, 1)[0], 4)
    wait_for(lambda: working.totals.stored == 7)
    assert len(working.progress) == 3  # of the team and two workers
    assert not any(each.reasons(60.0) for each in working.progress)
    stop.set()
    running.result(PATIENCE)
    assert len(rows.rows) == 7


def test_error_of_one_worker_ends_all(rows: Rows, redis_client: redis.Redis) -> None:
    keys = register(redis_client, 2)

    def fail(stream: str) -> None:
        if stream == keys[1]:
            raise ConfigurationError("the table is missing")

    rows.on_insert = fail
    append(redis_client, keys[1], 1)
    with pytest.raises(ConfigurationError, match="the table is missing"):
        Team(config(), threading.Event(), lambda _: None).run()


def test_process_ends_on_a_signal_and_serves_metrics(
    rows: Rows, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    stop = threading.Event()
    monkeypatch.setattr(process, "stop_on_signals", lambda: stop)
    keys = register(redis_client, 2)
    server = Mock(spec=Server)
    running = threads.in_thread(app.run, config(), server)
    for key in keys:
        append(redis_client, key, 5)
    wait_for(lambda: len(rows.rows) == 10)
    collector, health = server.serve.call_args.args
    assert not health().reasons
    found = {sample.name: sample.value for metric in collector.collect() for sample in metric.samples}
    assert found["tickpipe_rows_stored_total"] == 10
    wait_for(lambda: "tickpipe_lag_entries" in {m.name for m in collector.collect()})
    stop.set()
    running.result(PATIENCE)
    assert "stopped: 10 rows stored" in caplog.text


def test_drain_ends_the_process(rows: Rows, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "stop_on_signals", threading.Event)
    append(redis_client, "prices", 5)
    app.run(config(drain=True), None)
    assert len(rows.rows) == 5


def test_hanging_database_is_an_outage(rows: Rows, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, hangs = threading.Event(), threading.Event()
    monkeypatch.setattr(process, "stop_on_signals", lambda: stop)
    monkeypatch.setattr(app, "STOP_WITHIN", 0.1)

    def hang(_: str) -> None:
        stop.set()
        hangs.wait(PATIENCE)

    rows.on_insert = hang
    append(redis_client, "prices", 1)
    with pytest.raises(OutageError, match="shutdown timed out"):
        app.run(config(), None)
    hangs.set()
