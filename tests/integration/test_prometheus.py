"""A real Prometheus with the files of observability/ scrapes the processes and fires alerts for faults."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.support.faults import FaultySimulator
from tests.support.observability import FOLDER, read
from tests.support.pipeline import Pipeline
from tests.support.ports import free_port
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig

#: Interval of scrapes and evaluations. The files have 10 s.
EVERY = "500ms"
#: Minimum duration of a fault, if the alert has one.
FOR = "2s"


@pytest.fixture
def program() -> Path:
    found = shutil.which("prometheus")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no prometheus here: install it")
        pytest.skip("no prometheus here")
    return Path(found)


def write_files(folder: Path, targets: Mapping[str, Sequence[int]]) -> Path:
    """Write a configuration with short intervals and these ports for each job. Returns its path."""
    configuration = read(FOLDER / "prometheus.yml")
    configuration["global"] = dict.fromkeys(["scrape_interval", "scrape_timeout", "evaluation_interval"], EVERY)
    for job in configuration["scrape_configs"]:
        del job["dns_sd_configs"]
        addresses = [f"127.0.0.1:{port}" for port in targets[job["job_name"]]]
        job["static_configs"] = [{"targets": addresses}]
    for name in configuration["rule_files"]:
        rules = read(FOLDER / name)
        for rule in (rule for group in rules["groups"] for rule in group["rules"]):
            if "for" in rule:
                rule["for"] = FOR
        YAML().dump(rules, folder / name)
    YAML().dump(configuration, folder / "prometheus.yml")
    return folder / "prometheus.yml"


#: Name, severity and subject of an alert; the subject may be "".
Alert = tuple[str, str, str]


def _alert(labels: Mapping[str, str]) -> Alert:
    return labels["alertname"], labels["severity"], labels.get("instance", labels.get("stream", ""))


class Prometheus:
    """The response to a request."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, what: str, **parameters: object) -> Any:
        """The data of the response, or None before the first response."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["data"]
        except urllib.error.URLError:
            return None

    def up(self) -> set[str]:
        """The scraped targets, by address."""
        targets = (self.ask("targets") or {"activeTargets": []})["activeTargets"]
        return {target["labels"]["instance"] for target in targets if target["health"] == "up"}

    def firing(self) -> set[Alert]:
        """The firing alerts."""
        return {
            _alert(alert["labels"])
            for alert in (self.ask("alerts") or {"alerts": []})["alerts"]
            if alert["state"] == "firing"
        }

    def fired(self, since: float) -> dict[Alert, float]:
        """The time at which each alert first fired, in seconds since 1970."""
        found = self.ask("query", query='ALERTS{alertstate="firing"}[10m]')
        begins: dict[Alert, float] = {}
        for series in found["result"]:
            alert = _alert(series["metric"])
            for at in (float(at) for at, _ in series["values"] if float(at) >= since):
                begins[alert] = min(at, begins.get(alert, at))
        return begins


@pytest.fixture
def simulator() -> Iterator[FaultySimulator]:
    with FaultySimulator(SimulatorConfig(rate=1000.0, seed=1)) as simulator:
        yield simulator


def test_each_alert_fires_only_for_its_fault(
    program: Path, breakable_pipeline: Pipeline, simulator: FaultySimulator, tmp_path: Path
) -> None:
    feeding, storing, dying, asking = (free_port() for _ in range(4))
    pipeline = breakable_pipeline
    pipeline.producer(
        simulator.url,
        *("--metrics-port", str(feeding), "--unhealthy-after", "3"),
        *("--append-timeout", "5"),  # a slow disk would fire SpoolInUse
        symbols=["BTC/USD"],
    )
    pipeline.consumer("--metrics-port", str(storing))
    doomed = pipeline.consumer("--metrics-port", str(dying))
    pipeline.processes.start(
        program,
        f"--config.file={write_files(tmp_path, {'producer': [feeding], 'consumer': [storing, dying]})}",
        f"--storage.tsdb.path={tmp_path / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{asking}",
    )
    prometheus = Prometheus(asking)
    one, other = f"127.0.0.1:{storing}", f"127.0.0.1:{dying}"
    feed = f"127.0.0.1:{feeding}"
    wait_for(lambda: prometheus.up() == {feed, one, other}, message="all targets are up")
    stored = "sum(rate(tickpipe_rows_stored_total[5s])) > 0"
    wait_for(lambda: (prometheus.ask("query", query=stored) or {}).get("result"), message="rows are stored")
    # Prometheus scrapes nothing in its first 5 s. Targets look absent for longer than FOR, but under a minute.
    wait_for(lambda: prometheus.firing() == set(), message="no alert fires")
    began = time.time()
    made: dict[Alert, float] = {}

    def make(fault: Callable[[], object], *alerts: Alert) -> None:
        """Cause a fault and wait for its alerts."""
        made.update(dict.fromkeys(alerts, time.time()))
        fault()
        wait_for(lambda: prometheus.firing() >= set(alerts), message=f"these fire: {alerts}")

    make(lambda: pipeline.redis.xadd("prices", {"nothing": "that makes sense"}), ("DeadLetters", "warning", ""))

    silent = ("FeedSilent", "critical", feed)
    make(lambda: simulator.mute(on=True), silent)
    simulator.mute(on=False)
    wait_for(lambda: silent not in prometheus.firing(), message="the feed is heard again")

    red = [("ProcessDown", "warning", one), ("ProcessDown", "warning", other)]
    make(pipeline.servers.postgres.stop, ("LagGrowing", "warning", "prices"), *red)

    doomed.kill()
    make(pipeline.servers.valkey.stop, ("ProcessDown", "critical", other), ("SpoolInUse", "warning", feed))

    fired = prometheus.fired(began)
    assert fired.keys() == made.keys()
    assert {alert: at - made[alert] for alert, at in fired.items() if at < made[alert]} == {}, "too early"
