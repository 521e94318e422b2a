"""A Redis primary that is demoted, and a Redis Cluster behind a plain address, with real nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from common.database.client import DatabaseClient
from common.errors import StreamOutageError
from common.settings import Secret
from common.streams.client import connect
from common.streams.group import ConsumerGroup
from common.streams.stream import Stream
from tests.integration.test_metrics import get
from tests.support.pipeline import GROUP, Pipeline
from tests.support.ports import free_port
from tests.support.redis_nodes import FailoverPair, Node, cluster_of_two, failover_pair, run_id
from tests.support.waiting import wait_for
from tickpipe.inspect.sizes import SizeProbe
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

#: Number of prices that must be appended directly after the failover.
ENOUGH = 100


@pytest.fixture
def pair() -> Iterator[FailoverPair]:
    with failover_pair() as pair:
        yield pair


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[Node]]:
    with cluster_of_two(apart="prices:feed") as nodes:
        yield nodes


def sample(port: int, name: str, **labels: str) -> float:
    """One metric sample; -1 until the port is open."""
    for family in text_string_to_metric_families(get(port, "/metrics")[1]):
        for each in family.samples:
            if each.name == name and each.labels == labels:
                return each.value
    return -1


# A failover.


def test_prices_are_appended_directly_and_stored_again_after_a_failover(pipeline: Pipeline, pair: FailoverPair) -> None:
    port = free_port()

    def direct() -> float:
        return sample(port, "tickpipe_events_appended_total", path="direct")

    def spooled() -> float:
        return sample(port, "tickpipe_spool_entries")

    with Simulator(SimulatorConfig(rate=100)) as simulator:
        consumer = pipeline.consumer(REDIS_URL=pair.url)
        # With a long timeout the client keeps the connection while the old node delays writes.
        options = ("--append-timeout", "30", "--metrics-port", str(port))
        producer = pipeline.producer(simulator.url, *options, symbols=[], REDIS_URL=pair.url, SYMBOLS="BTC/USD,AAPL")
        pipeline.wait_until_stored(ENOUGH)
        pair.fail_over()
        wait_for(lambda: spooled() == 0 and "read only replica" in producer.said(), message="the spool is empty again")
        appended, stored = direct(), pipeline.database.count()
        wait_for(lambda: direct() >= appended + ENOUGH, message="new prices are appended directly")
        assert spooled() == 0
        pipeline.wait_until_stored(stored + ENOUGH)
        assert producer.stop() == 0
    wait_for(pipeline.last_seqs, message="the consumer has stored `stopped`")
    assert consumer.stop() == 0
    ((count, last),) = pipeline.database.query("SELECT count(*), max(seq) FROM prices_real_time")
    assert [count] == [last] == pipeline.last_seqs()


def test_every_call_reaches_the_new_primary_after_one_error(pipeline: Pipeline, pair: FailoverPair) -> None:
    """Read-only calls must move as well: the old node would keep answering them."""
    calls: dict[str, Callable[[ConsumerGroup], object]] = {
        "check": ConsumerGroup.check,
        "append": lambda stream: stream.append([{"seq": "1"}]),
        "ensure_group": ConsumerGroup.ensure_group,
        "read": lambda stream: stream.read(1),
        "read_own_pending": lambda stream: stream.read_own_pending(1),
        "claim": lambda stream: list(stream.claim(0, 1)),
        "ack": lambda stream: stream.ack([b"1-0"]),
        "report": lambda stream: stream.statistics.publish(stream.consumer, at=1),
        "forget_reports": lambda stream: stream.statistics.prune(2),
        "consumers": ConsumerGroup.consumers,
        "leave": ConsumerGroup.leave,
        "trim": ConsumerGroup.trim,
        "unprocessed": lambda stream: list(stream.unprocessed()),
        "groups": ConsumerGroup.groups,
        "backlog": ConsumerGroup.backlog,
    }
    clients = {name: connect(Secret(pair.url), "prices") for name in [*calls, "sizes"]}
    streams = {name: ConsumerGroup(client, "prices", GROUP, name) for name, client in clients.items()}
    streams["append"].append([{"seq": "1"}])
    streams["ensure_group"].ensure_group()
    streams["report"].statistics.publish("report", at=1)
    pair.primary.command("XGROUP", "CREATECONSUMER", "prices", GROUP, "leave")  # otherwise the consumer would be idle
    for client in clients.values():
        assert run_id(client) == pair.primary.run_id()
    measure = SizeProbe(
        lambda: [Stream(clients["sizes"], "prices")], DatabaseClient(Secret(pipeline.database.url)), pipeline.folder
    )
    calls["sizes"] = lambda _: measure()
    pair.fail_over()

    wrong = {}
    for name, call in calls.items():
        with suppress(StreamOutageError):
            call(streams[name])
        try:
            call(streams[name])
        except StreamOutageError as error:
            wrong[name] = str(error)
        else:
            if run_id(clients[name]) != pair.primary.run_id():
                wrong[name] = "still on the old node"
        clients[name].close()
    measure.store.close()
    assert wrong == {}


def test_replica_is_an_outage_that_names_the_node(pair: FailoverPair) -> None:
    client = redis.Redis(port=pair.replica.port, protocol=2)
    for call in (ConsumerGroup.check, ConsumerGroup.backlog, ConsumerGroup.consumers):
        with pytest.raises(StreamOutageError, match="REDIS_URL is a replica"):
            call(ConsumerGroup(client, "prices", GROUP))
    client.close()


# A cluster.


@pytest.mark.parametrize("command", ["producer", "consumer"])
def test_single_cluster_node_is_refused_at_startup(pipeline: Pipeline, cluster: list[Node], command: str) -> None:
    url = f"redis://127.0.0.1:{cluster[0].port}/0"
    options = ["--symbols", "AAPL", "--spool-dir", str(pipeline.folder / "spool")] if command == "producer" else []
    process = pipeline.processes.start(command, *options, REDIS_URL=url)
    assert process.wait() == 2
    (line,) = process.last_log_line()
    assert line.startswith(f"{command}: REDIS_URL names one node of a Redis Cluster: write redis+cluster://")


def test_single_cluster_node_is_refused_by_the_tools(pipeline: Pipeline, cluster: list[Node]) -> None:
    process = pipeline.processes.start("tickpipe", "status", REDIS_URL=f"redis://127.0.0.1:{cluster[1].port}/0")
    assert process.wait() == 2
    assert process.last_log_line()[-1].startswith("tickpipe: REDIS_URL names one node of a Redis Cluster")


def test_doctor_reports_a_replica_and_a_cluster(pipeline: Pipeline, pair: FailoverPair, cluster: list[Node]) -> None:
    for port, words in ((pair.replica.port, "is a replica"), (cluster[1].port, "one node of a Redis Cluster")):
        process = pipeline.processes.start("tickpipe", "doctor", REDIS_URL=f"redis://127.0.0.1:{port}/0")
        assert process.wait() == 1
        assert [line for line in process.last_log_line() if line.startswith("BAD  Redis: ") and words in line]


def test_doctor_reports_a_replica_that_does_not_write_to_disk(pipeline: Pipeline, pair: FailoverPair) -> None:
    def finding() -> str:
        process = pipeline.processes.start("tickpipe", "doctor", REDIS_URL=f"redis://127.0.0.1:{pair.primary.port}/0")
        process.wait()
        return next(line for line in process.last_log_line() if "Redis replica" in line)

    assert finding() == f"ok   Redis replica 127.0.0.1:{pair.replica.port}: appendonly yes"
    pair.replica.command("CONFIG", "SET", "appendonly", "no")
    assert finding().startswith(f"BAD  Redis replica 127.0.0.1:{pair.replica.port}: appendonly no: ")
