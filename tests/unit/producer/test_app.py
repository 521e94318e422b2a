"""A whole producer in this process, on a Redis in memory: channels, spools, a signal, and what dead producers left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fakeredis
import pytest
import redis

from common import process, threads
from common.channels import channel_keys, channel_of
from common.errors import ConfigurationError
from common.metrics import Server
from common.settings import Secret
from common.streams.lease import Lease
from producer import app, delivery, upkeep
from producer.config import FeedConfig, ProducerConfig
from producer.spool import Outgoing, Spool
from producer.spool_folder import all_spool_files, channel_folder, make_folder, spool_path
from tests.support.faults import FaultySimulator
from tests.support.waiting import PATIENCE, wait_for
from tests.unit.conftest import stored
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.listings import LISTINGS

SYMBOLS = sorted(LISTINGS)[:20]


@pytest.fixture
def simulator() -> Iterator[FaultySimulator]:
    with FaultySimulator(SimulatorConfig(rate=500, seed=1)) as simulator:
        yield simulator


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch, redis_server: fakeredis.FakeServer) -> threading.Event:
    """The event of a signal. Every client of the producer uses the Redis in memory."""
    stop = threading.Event()
    monkeypatch.setattr(
        delivery, "connect", lambda *_, **__: fakeredis.FakeStrictRedis(server=redis_server, protocol=2)
    )  # fmt: skip
    monkeypatch.setattr(process, "stop_on_signals", lambda: stop)
    monkeypatch.setattr(upkeep, "EVERY", 0.1)
    return stop


def config(url: str, folder: Path, **more: Any) -> ProducerConfig:
    settings: dict[str, Any] = {
        "feed": FeedConfig(url=url), "api_key": lambda: Secret("key-of-the-test"), "symbols": lambda: SYMBOLS,
        "reread_symbols": False, "redis_url": Secret("redis://nowhere/"), "price_stream": "prices",
        "spool_folder": folder / "spool", "spool_max": 10**8, "queue_max": 10**5, "append_timeout": 10.0,
        "unhealthy_after": 60.0,
    }  # fmt: skip
    return ProducerConfig(**settings | more)


@pytest.mark.parametrize("count", [1, 3])
def test_prices_are_appended_to_their_channel(
    redis_client: redis.Redis, simulator: FaultySimulator, stop: threading.Event, tmp_path: Path, count: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    keys = channel_keys("prices", count)
    server = Mock(spec=Server)
    running = threads.in_thread(app.run, config(simulator.url, tmp_path, partitions=count), server)
    wait_for(lambda: all(redis_client.xlen(key) > 20 for key in keys))
    collector, health = server.serve.call_args.args
    assert not health().reasons
    metrics = {sample.name for metric in collector.collect() for sample in metric.samples}
    assert "tickpipe_events_appended_total" in metrics
    stop.set()
    running.result(PATIENCE)
    for number, key in enumerate(keys):
        found = [fields for _, fields in stored(redis_client, key)]
        assert {channel_of(fields[b"symbol"].decode(), count) for fields in found} == {number}
        assert [int(fields[b"seq"]) for fields in found] == list(range(1, len(found) + 1))
        kinds = [fields[b"event"] for _, fields in stored(redis_client, f"{key}:feed")]
        assert (kinds[0], kinds[-1]) == (b"started", b"stopped")
    assert redis_client.smembers("{prices}:channels") == ({key.encode() for key in keys} if count > 1 else set())
    assert not all_spool_files(tmp_path / "spool")
    assert "price events received" in caplog.text


def test_spools_of_all_channels_that_were_used_are_appended(
    redis_client: redis.Redis, simulator: FaultySimulator, stop: threading.Event, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    for key in ("prices", "prices:{5}"):
        place = channel_folder(folder, key, "prices")
        make_folder(place)
        with closing(Spool(spool_path(place, 1), max_bytes=10**6)) as spool:
            spool.put([Outgoing("prices", {"session": "1", "seq": "7"})])
    running = threads.in_thread(app.run, config(simulator.url, tmp_path, partitions=2), None)
    wait_for(lambda: redis_client.xlen("prices") == redis_client.xlen("prices:{5}") == 1)
    stop.set()
    running.result(PATIENCE)
    assert not all_spool_files(folder)


def test_refused_symbols_end_the_producer(
    redis_client: redis.Redis, simulator: FaultySimulator, stop: threading.Event, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="none of the symbols can be subscribed"):
        app.run(config(simulator.url, tmp_path, symbols=lambda: ["NONE"], partitions=2), None)
    assert stop.is_set()
    assert redis_client.xlen("prices:{0}:feed")


def test_active_producer_hands_over_at_its_end(
    redis_client: redis.Redis, simulator: FaultySimulator, stop: threading.Event, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Lease, "check", lambda _: None)  # a Redis in memory refuses the checks' invalid commands
    running = threads.in_thread(app.run, config(simulator.url, tmp_path, partitions=2, lease=5.0), None)
    wait_for(lambda: redis_client.xlen("prices:{0}") > 20)
    assert redis_client.get("{prices}:lease:twelvedata")
    stop.set()
    running.result(PATIENCE)
    assert redis_client.get("{prices}:lease:twelvedata") is None
    keys = ["{prices}:fence", "prices:{0}:fence", "prices:{1}:feed:fence"]
    assert len({redis_client.hget(key, "twelvedata") for key in keys}) == 1
