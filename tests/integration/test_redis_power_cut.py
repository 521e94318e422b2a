"""The power of a Redis primary is cut while entries are on the way to its replica. Sentinels fail over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from common.errors import ConfigurationError
from common.settings import Secret
from common.streams.client import connect
from common.streams.stream import Stream
from tests.chaos.oracle import SYMBOLS, Journal, Numbered
from tests.support.pipeline import Pipeline
from tests.support.processes import Running
from tests.support.redis_nodes import sentinel_group
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

#: Seconds on the link from the primary to its replica.
DELAY = 0.2
#: Prices a second.
RATE = 500


class Run:
    """A simulator, a producer and, at the end, a consumer, on a Redis that fails over."""

    def __init__(self, pipeline: Pipeline, simulator: Simulator, sent: Journal, **environ: str) -> None:
        self._pipeline = pipeline
        self._sent = sent
        self._environ = environ
        self.producer: Running = pipeline.producer(simulator.url, symbols=SYMBOLS, **environ)

    def sent(self) -> int:
        """The number of prices that the simulator has sent."""
        return sum(map(len, self._sent.connections.values()))

    def wait_until_sent(self, more: int) -> None:
        """Wait until the simulator has sent this many more prices."""
        wanted = self.sent() + more
        wait_for(lambda: self.sent() >= wanted, message=f"{wanted} prices are sent")

    def stop(self) -> tuple[int, int]:
        """Stop the producer and store everything. Returns the numbers of received and of stored prices."""
        assert self.producer.stop() == 0
        consumer = self._pipeline.consumer("--drain", "--claim-idle", "0.5", **self._environ)
        assert consumer.wait() == 0
        ((rows, prices),) = self._pipeline.database.query(
            "SELECT count(*), count(DISTINCT price) FROM prices_real_time"
        )
        assert rows == prices
        assert sum(len(connection) for connection in self._sent.connections.values()) >= rows
        return sum(self._pipeline.last_seqs()), rows


@contextmanager
def running(pipeline: Pipeline, **environ: str) -> Iterator[Run]:
    journal = Journal(lambda: 0.0)
    with Simulator(SimulatorConfig(rate=RATE), Numbered(10**9), journal) as simulator:
        run = Run(pipeline, simulator, journal, **environ)
        run.wait_until_sent(RATE)
        yield run


@pytest.mark.parametrize("replicas", [1, 0], ids=["confirmed", "not confirmed"])
def test_power_cut_behind_sentinels_loses_only_what_no_replica_confirmed(pipeline: Pipeline, replicas: int) -> None:
    """Without a confirmation the cut loses prices: so it is a fault that the other case survives."""
    with (
        sentinel_group(DELAY) as group,
        running(pipeline, REDIS_URL=group.url, REDIS_REPLICAS=str(replicas)) as run,
    ):
        group.cut_power()
        wait_for(group.promoted, message="the replica is promoted")
        run.wait_until_sent(RATE)
        received, stored = run.stop()
    assert received > 2 * RATE
    if replicas:
        assert stored == received
    else:
        assert stored < received


def test_lost_replica_stops_nothing(pipeline: Pipeline) -> None:
    with sentinel_group() as group, running(pipeline, REDIS_URL=group.url, REDIS_REPLICAS="1") as run:
        group.replica.server.kill()
        consumer = pipeline.consumer(REDIS_URL=group.url)
        run.producer.wait_until_said("too few replicas confirmed")
        stored = pipeline.database.count()
        pipeline.wait_until_stored(stored + RATE)
        group.replica.server.start()
        assert consumer.stop() == 0
        received, rows = run.stop()
    assert rows == received


def test_url_of_the_wrong_form_and_a_server_that_confirms_nothing_are_refused() -> None:
    def refusal(url: str, replicas: int = 0) -> str:
        stream = Stream(connect(Secret(url), "prices"), "prices")
        with pytest.raises(ConfigurationError) as caught, closing(stream.client):
            stream.check_append_once(replicas)
        return str(caught.value)

    with sentinel_group() as group:
        sentinel, node = f"127.0.0.1:{group.sentinels[0].port}", f"127.0.0.1:{group.primary.port}"
        assert "write redis+sentinel://HOST:PORT/SERVICE" in refusal(f"redis://{sentinel}")
        assert "write redis://HOST:PORT" in refusal(f"redis+sentinel://{node}/ticks")
        assert "write redis://HOST:PORT" in refusal(f"redis+cluster://{node}")
        assert "do not know the service 'prices': they know ticks" in refusal(f"redis+sentinel://{sentinel}/prices")
        group.primary.command("CONFIG", "SET", "appendonly", "no")
        assert "set `appendonly yes`" in refusal(group.url, replicas=1)
        group.primary.command("ACL", "SETUSER", "default", "-waitaof")
        assert "Redis refuses a right on the key 'prices'" in refusal(group.url, replicas=1)
