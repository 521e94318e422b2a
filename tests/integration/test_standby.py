"""Two producers with one feed name: one is active, the other takes over."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest

from tests.chaos.oracle import DOUBLED, SYMBOLS, Numbered
from tests.integration.test_metrics import get
from tests.support.delayed_link import DelayedLink
from tests.support.pipeline import Pipeline
from tests.support.ports import free_port
from tests.support.processes import Running
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

#: Seconds.
LEASE = 1.5
RATE = 200
#: Seconds that a busy machine may need on top.
SLACK = 10.0


class Pair:
    """The active producer, and the one that waits."""

    def __init__(self, pipeline: Pipeline, url: str, keep: str, **environ: str) -> None:
        """`keep`: how long entries stay in the streams. `environ`: of the active producer."""
        self._pipeline = pipeline
        self._url = url
        self.active = self.start(**environ)
        self.active.wait_until_said("active: this producer has the lease")
        self.waiting = self.start()
        self.waiting.wait_until_said("waiting: ")
        self.consumer = pipeline.consumer("--stream-keep", keep)
        pipeline.wait_until_stored(RATE)

    def start(self, **environ: str) -> Running:
        return self._pipeline.producer(self._url, "--standby", "--lease", str(LEASE), symbols=SYMBOLS, **environ)

    def wait_until_taken_over(self) -> None:
        """Wait until the waiting producer is active, and its prices are stored."""
        self.waiting.wait_until_said("active: this producer has the lease")
        stored = self._pipeline.database.count()
        self._pipeline.wait_until_stored(stored + RATE)

    def blind(self) -> float:
        """The longest time without a price, in seconds."""
        ((seconds,),) = self._pipeline.database.query(
            "SELECT extract(epoch FROM max(pause))::float8 FROM (SELECT received_at - lag(received_at) "
            "OVER (ORDER BY received_at) AS pause FROM prices_real_time) AS pauses"
        )
        return float(seconds)

    def stop(self) -> None:
        """Stop all and check that nothing is doubled, and that the sessions are complete.

        The waiting producer first: it would become active at the end of the other one.
        """
        for producer in (self.waiting, self.active):
            if producer.status is None:
                assert producer.stop() == 0
        assert self.consumer.stop() == 0
        assert self._pipeline.consumer("--drain", "--claim-idle", "0.5").wait() == 0
        assert self._pipeline.database.query(DOUBLED) == []
        assert self._pipeline.processes.start("tickpipe", "verify", "--claim-idle", "0").wait() == 0


@contextmanager
def running(pipeline: Pipeline, keep: str = "10m", **environ: str) -> Iterator[Pair]:
    with Simulator(SimulatorConfig(rate=RATE), Numbered(10**9)) as simulator:
        yield Pair(pipeline, simulator.url, keep, **environ)


def gaps(pipeline: Pipeline) -> set[str]:
    """The causes of the gaps that have ended."""
    return {cause for (cause,) in pipeline.database.query("SELECT cause FROM feed_gaps WHERE until < 'infinity'")}


def test_killed_producer_is_replaced_after_the_lease(pipeline: Pipeline) -> None:
    with running(pipeline) as pair:
        pair.active.kill()
        pair.wait_until_taken_over()
        assert pair.blind() < LEASE + 1 + SLACK
        wait_for(lambda: gaps(pipeline) == {"stopped reporting"}, message="the handover is a gap")
        pair.stop()
    counts = pipeline.database.query("SELECT count(*) FROM feed_gaps WHERE until < 'infinity' GROUP BY symbol")
    assert counts == [(1,)] * len(SYMBOLS)


def test_stopped_producer_hands_over_at_once(pipeline: Pipeline) -> None:
    with running(pipeline) as pair:
        assert pair.active.stop() == 0
        pair.wait_until_taken_over()
        assert pair.blind() < 1 + SLACK
        assert gaps(pipeline) == {"stopped"}
        pair.stop()


def test_producer_that_was_paused_for_longer_than_the_lease_doubles_nothing(pipeline: Pipeline) -> None:
    with running(pipeline) as pair:
        pair.active.signal(signal.SIGSTOP)
        pair.wait_until_taken_over()
        pair.active.signal(signal.SIGCONT)
        pair.active.wait_until_said("fenced: another producer of this feed is active")
        pair.active.wait_until_said("waiting: ")
        assert pair.waiting.stop() == 0
        wait_for(lambda: pair.active.said().count("active: this producer has the lease") == 2)
        stored = pipeline.database.count()
        pipeline.wait_until_stored(stored + RATE)
        pair.stop()


def test_outage_of_redis_changes_nothing(breakable_pipeline: Pipeline) -> None:
    pipeline = breakable_pipeline
    with running(pipeline) as pair:
        pipeline.servers.valkey.kill()
        pair.waiting.wait_until_said("; waiting")
        pair.active.wait_until_said("try 3")
        pipeline.servers.valkey.start()
        stored = pipeline.database.count()
        pipeline.wait_until_stored(stored + 5 * RATE)
        assert "active: " not in pair.waiting.said()
        assert gaps(pipeline) == set()
        pair.stop()
    ((rows, first, last),) = pipeline.database.query("SELECT count(*), min(price), max(price) FROM prices_real_time")
    assert rows == last - first + 1


@pytest.mark.parametrize("trimmed", [False, True], ids=["soon", "late"])
def test_producer_that_alone_loses_redis_keeps_its_own_prices_only(pipeline: Pipeline, trimmed: bool) -> None:
    """It receives and spools, while the other one becomes active. At its return it discards what both have received.

    `trimmed`: the first prices of the other one are not in the stream any more.
    """
    with (
        DelayedLink(pipeline.redis.connection_pool.connection_kwargs["path"], 0.0) as link,
        running(pipeline, "0" if trimmed else "10m", REDIS_URL=f"redis://127.0.0.1:{link.port}/0") as pair,
    ):
        link.cut()
        pair.wait_until_taken_over()
        if trimmed:
            appended = pipeline.prices.last_id()
            wait_for(lambda: not any(pipeline.prices.scan(b"-", 1, appended)), message="the stream is trimmed")
        link.connect()
        pair.active.wait_until_said("discarded: ")
        wait_for(lambda: "spool adopted" in pair.active.said() + pair.waiting.said(), message="the rest is appended")
        pair.stop()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_spool_of_a_producer_that_ended_without_redis_doubles_nothing(pipeline: Pipeline, end: str) -> None:
    """It ended before it could learn of the other one. Its spool is appended at its next start."""
    with (
        DelayedLink(pipeline.redis.connection_pool.connection_kwargs["path"], 0.0) as link,
        running(pipeline, REDIS_URL=f"redis://127.0.0.1:{link.port}/0") as pair,
    ):
        link.cut()
        pair.wait_until_taken_over()
        if end == "stop":
            pair.active.stop()
        else:
            pair.active.kill()
        link.connect()
        repair = pipeline.processes.start(
            "tickpipe", "verify", "--repair", "--claim-idle", "0", REDIS_URL=f"redis://127.0.0.1:{link.port}/0"
        )
        assert repair.wait() in {0, 1}, repair.said()
        assert pipeline.database.query(DOUBLED) == []
        pair.active = pair.start(REDIS_URL=f"redis://127.0.0.1:{link.port}/0")
        pair.active.wait_until_said("discarded: ")
        pair.stop()


def test_health_and_status_name_the_active_producer(pipeline: Pipeline) -> None:
    with Simulator(SimulatorConfig(rate=RATE)) as simulator:
        first, port = free_port(), free_port()
        active = pipeline.producer(simulator.url, "--standby", "--metrics-port", str(first))
        active.wait_until_said("active: ")
        pipeline.producer(simulator.url, "--standby", "--metrics-port", str(port)).wait_until_said("waiting: ")
        assert get(first, "/healthz") == (HTTPStatus.OK, "ok\nactive: this producer has the lease\n")
        status, health = get(port, "/healthz")
        assert (status, health.startswith("ok\nstandby: ")) == (HTTPStatus.OK, True)
        holder = health.split("standby: ")[1].removesuffix(" is active\n")
        assert f"-{active.pid}-" in holder
        assert "tickpipe_producer_active 0.0" in get(port, "/metrics")[1]
        shown = pipeline.processes.start("tickpipe", "status")
        assert shown.wait() == 0
        assert f"producer {holder} is active" in shown.said()
