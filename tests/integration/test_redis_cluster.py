"""Eight channels on a Redis Cluster of three primaries and three replicas: failovers and moved slots lose nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.channels import channel_key
from tests.chaos.oracle import SYMBOLS_OF_CHANNELS, Journal, Numbered
from tests.support.pipeline import Pipeline
from tests.support.processes import Running
from tests.support.redis_cluster import Member, RedisCluster, redis_cluster
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

CHANNELS = 8
#: Prices a second.
RATE = 2000
#: Seconds on the links to the replicas.
DELAY = 0.05


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with redis_cluster(DELAY) as cluster:
        yield cluster


class Run:
    """A simulator, a producer and two consumers on the cluster."""

    def __init__(self, pipeline: Pipeline, cluster: RedisCluster, simulator: Simulator, journal: Journal) -> None:
        self._pipeline = pipeline
        self._journal = journal
        self._simulator = simulator
        self.environ = {"REDIS_URL": cluster.url, "REDIS_REPLICAS": "1"}
        self.consumers = [pipeline.consumer("--claim-idle", "1", **self.environ) for _ in range(2)]
        self.producer: Running = pipeline.producer(
            simulator.url, "--partitions", str(CHANNELS), symbols=SYMBOLS_OF_CHANNELS, **self.environ
        )

    def pass_on(self, count: int = RATE) -> None:
        """Wait until this many more prices are sent, and as many stored."""
        sent, stored = self._sent() + count, self._pipeline.database.count() + count
        wait_for(lambda: self._sent() >= sent, message=f"{sent} prices are sent")
        self._pipeline.wait_until_stored(stored)

    def check(self) -> None:
        """Stop everything. All that was received is stored once."""
        assert self.producer.stop() == 0
        drain = self._pipeline.consumer("--drain", "--claim-idle", "1", **self.environ)
        assert drain.wait() == 0, drain.said()
        assert [consumer.stop() for consumer in self.consumers] == [0, 0]
        ((rows, prices),) = self._pipeline.database.query(
            "SELECT count(*), count(DISTINCT price) FROM prices_real_time"
        )
        assert rows == prices == sum(self._pipeline.last_seqs())
        verify = self._pipeline.processes.start("tickpipe", "verify", "--json", "--claim-idle", "0.5", **self.environ)
        assert verify.wait() == 0, verify.said()
        assert [verdict["state"] for verdict in verify.json()] == ["complete"] * CHANNELS
        gaps = self._pipeline.database.query("SELECT cause FROM feed_outages WHERE until IS NOT NULL")
        assert gaps == [], "the websocket was never lost"

    def _sent(self) -> int:
        return sum(map(len, list(self._journal.connections.values())))


@pytest.fixture
def run(pipeline: Pipeline, cluster: RedisCluster) -> Iterator[Run]:
    for member in cluster.primaries:
        member.command("FLUSHALL")
    journal = Journal(lambda: 0.0)
    with Simulator(SimulatorConfig(rate=RATE), Numbered(10**9), journal) as simulator:
        run = Run(pipeline, cluster, simulator, journal)
        run.pass_on()
        yield run


def test_channels_are_on_all_primaries(cluster: RedisCluster) -> None:
    owners = {cluster.owner(cluster.slot(channel_key("prices", channel))).id for channel in range(CHANNELS)}
    assert len(owners) == 3


def test_power_cut_of_a_primary_loses_nothing(cluster: RedisCluster, run: Run) -> None:
    slot = cluster.slot(channel_key("prices", 0))
    lost = cluster.owner(slot)
    cluster.cut_power(lost)
    wait_for(lambda: cluster.owner(slot) is not lost, message="a replica is promoted")
    run.pass_on()
    cluster.restore_power(lost)
    wait_for(cluster.is_in_step, message="the old primary is a replica")
    run.pass_on()
    run.check()


def other_than(cluster: RedisCluster, slot: int) -> Member:
    """A primary that does not have the slot."""
    return next(member for member in cluster.primaries if member is not cluster.owner(slot))


def test_moved_slots_lose_nothing(cluster: RedisCluster, run: Run) -> None:
    """Of a channel with prices, by both kinds of migration, and to a node that was added."""
    by_migrate, at_once, added = (cluster.slot(channel_key("prices", channel)) for channel in (1, 2, 3))
    cluster.move_by_migrate(by_migrate, other_than(cluster, by_migrate))
    run.pass_on()
    cluster.move_at_once(at_once, other_than(cluster, at_once))
    run.pass_on()
    cluster.move_by_migrate(added, cluster.add())
    run.pass_on()
    run.check()


def test_commands_work_on_a_cluster(pipeline: Pipeline, cluster: RedisCluster, run: Run) -> None:
    for command in ("status", "doctor", "replay", "verify --repair --claim-idle 0.5"):
        ended = pipeline.processes.start("tickpipe", *command.split(), **run.environ)
        assert ended.wait() == 0, ended.said()
        if command == "doctor":
            assert ended.said().count("appendfsync always") == len(cluster.primaries)
            assert ended.said().count("appendonly yes") == len(cluster.primaries) + 3  # and the replicas
    run.check()
