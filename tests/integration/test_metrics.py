"""Metrics and health of the real commands, in normal operation and during outages."""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from common.streams.client import TIMEOUT
from tests.support.capture import make_events, write_capture
from tests.support.faults import FaultySimulator
from tests.support.pipeline import Pipeline
from tests.support.ports import free_port
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body of the response. Status 0: the port is closed."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except urllib.error.URLError:
        return 0, ""


def scrape(port: int) -> dict[str, float]:
    """The samples of a scrape, summed over labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(get(port, "/metrics")[1]):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def wait_for_health(port: int, status: int, words: str) -> None:
    """Wait until /healthz has this status and text."""

    def says() -> bool:
        code, body = get(port, "/healthz")
        return code == status and words in body

    wait_for(says, message=f"/healthz says {status} and {words!r}; it says {get(port, '/healthz')}")


def test_metrics_count_received_appended_and_stored_prices(pipeline: Pipeline, tmp_path: Path) -> None:
    events = make_events(2000)
    feeding, storing = free_port(), free_port()
    with Simulator(SimulatorConfig(capture=write_capture(tmp_path / "capture.ndjson", events), speed=0.0)) as simulator:
        pipeline.consumer("--metrics-port", str(storing))
        pipeline.producer(simulator.url, METRICS_PORT=str(feeding))
        wait_for(lambda: scrape(storing).get("tickpipe_rows_stored_total") == len(events))
        produced = scrape(feeding)
        assert produced["tickpipe_events_received_total"] == len(events)
        assert produced["tickpipe_events_appended_total"] == len(events)
        assert produced["tickpipe_events_lost_total"] == produced["tickpipe_spool_entries"] == 0
        assert produced["tickpipe_healthy"] == 1
        consumed = scrape(storing)
        assert consumed["tickpipe_latency_seconds_count"] == consumed["tickpipe_batch_entries_sum"] == len(events)
        assert consumed["tickpipe_insert_seconds_count"] == consumed["tickpipe_batch_entries_count"]
        assert consumed["tickpipe_redis_up"] == consumed["tickpipe_database_up"] == consumed["tickpipe_healthy"] == 1
        wait_for(
            lambda: scrape(storing)["tickpipe_lag_entries"] == 0 and scrape(storing)["tickpipe_pending_entries"] == 0
        )
        assert [get(port, "/healthz") for port in (feeding, storing)] == [(200, "ok\n")] * 2


def test_consumer_is_unhealthy_during_a_database_outage(breakable_pipeline: Pipeline) -> None:
    pipeline, port = breakable_pipeline, free_port()
    with Simulator(SimulatorConfig(rate=100)) as simulator:
        pipeline.consumer("--metrics-port", str(port))
        pipeline.producer(simulator.url)
        pipeline.wait_until_stored(20)
        assert get(port, "/healthz") == (200, "ok\n")
        pipeline.database.close()
        pipeline.servers.postgres.stop()
        wait_for_health(port, 503, "the database: ")
        assert scrape(port)["tickpipe_database_up"] == 0
        wait_for(lambda: scrape(port)["tickpipe_lag_entries"] > 0, message="the backlog is seen to grow")
        pipeline.servers.postgres.start()
        wait_for_health(port, 200, "ok")
        assert scrape(port)["tickpipe_database_up"] == 1


def test_redis_outage_makes_the_consumer_unhealthy_and_the_producer_spool(breakable_pipeline: Pipeline) -> None:
    pipeline = breakable_pipeline
    feeding, storing = free_port(), free_port()
    with Simulator(SimulatorConfig(rate=100)) as simulator:
        pipeline.consumer("--metrics-port", str(storing))
        pipeline.producer(simulator.url, "--metrics-port", str(feeding))
        pipeline.wait_until_stored(20)
        pipeline.servers.valkey.stop()
        wait_for_health(storing, 503, "Redis: ")
        wait_for(lambda: scrape(storing)["tickpipe_redis_up"] == 0)
        wait_for_health(feeding, 200, "ok\nspooling: ")  # healthy, with a note about the spool
        assert scrape(feeding)["tickpipe_spool_entries"] > 0
        pipeline.servers.valkey.start()
        wait_for(lambda: scrape(feeding)["tickpipe_spool_entries"] == 0)
        wait_for_health(storing, 200, "ok")
        wait_for(lambda: scrape(storing)["tickpipe_redis_up"] == 1)


def test_hanging_redis_does_not_block_a_scrape(breakable_pipeline: Pipeline) -> None:
    pipeline, port = breakable_pipeline, free_port()
    pipeline.consumer("--metrics-port", str(port))
    wait_for(lambda: scrape(port).get("tickpipe_redis_up") == 1)
    pid = pipeline.servers.valkey.pid
    assert pid

    def quickly_seen_away() -> bool:
        began = time.monotonic()
        up, (status, _) = scrape(port)["tickpipe_redis_up"], get(port, "/healthz")
        assert time.monotonic() - began < TIMEOUT  # the timeout of the client
        return up == 0 and status == 503

    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(quickly_seen_away)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for_health(port, 200, "ok")


def test_producer_is_unhealthy_without_a_websocket(pipeline: Pipeline) -> None:
    port = free_port()
    with FaultySimulator(SimulatorConfig(rate=100)) as simulator:
        pipeline.producer(simulator.url, "--metrics-port", str(port), "--unhealthy-after", "1.5")
        wait_for(lambda: pipeline.appended() > 20)
        assert get(port, "/healthz") == (200, "ok\n")
        assert scrape(port)["tickpipe_feed_connected"] == 1
        simulator.refuse_key(on=True)
        simulator.close_all()
        wait_for_health(port, 503, "no message from 127.0.0.1 for ")
        assert scrape(port)["tickpipe_feed_connected"] == 0
        simulator.refuse_key(on=False)
        wait_for_health(port, 200, "ok")
        assert scrape(port)["tickpipe_feed_reconnects_total"] == 1


def test_metrics_port_is_closed_by_default(pipeline: Pipeline) -> None:
    with Simulator(SimulatorConfig(rate=100)) as simulator:
        consumer, producer = pipeline.consumer(), pipeline.producer(simulator.url, METRICS_PORT="")
        pipeline.wait_until_stored(20)
    for process in (consumer, producer):
        assert "/metrics" not in process.said()
