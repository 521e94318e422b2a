"""The lag that KEDA's triggers compute on a real stream is the lag of `tickpipe status`."""

from __future__ import annotations

from typing import Any

from tests.deploy.test_chart import SECRET, of_kind, rendered
from tests.support.pipeline import Pipeline
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.listings import LISTINGS
from tickpipe.simulator.server import Simulator

PARTITIONS = 4


def triggers() -> list[dict[str, str]]:
    values = {"secret": SECRET, "partitions": PARTITIONS, "keda": {"enabled": True}}
    (scaled,) = of_kind(rendered(values), "ScaledObject")
    return [trigger["metadata"] for trigger in scaled["spec"]["triggers"]]


def keda_lag(pipeline: Pipeline, trigger: dict[str, str]) -> int:
    """As KEDA's scaler of Redis streams reads it: XINFO GROUPS, the lag of the group."""
    groups: Any = pipeline.redis.xinfo_groups(trigger["stream"])
    (lag,) = [group["lag"] for group in groups if group["name"].decode() == trigger["consumerGroup"]]
    return int(lag)


def test_lag_of_the_triggers_is_the_lag_of_status(pipeline: Pipeline) -> None:
    def lags() -> dict[str, int]:
        status = pipeline.processes.start("tickpipe", "status", "--json")
        assert status.wait() == 0, status.said()
        return {key: each["lag"] for key, each in status.json()["channels"].items()}

    watched = triggers()
    create = pipeline.processes.start("tickpipe", "create-streams", "--partitions", str(PARTITIONS))
    assert create.wait() == 0, create.said()
    pipeline.consumer("--drain").wait()
    assert [keda_lag(pipeline, trigger) for trigger in watched] == [0] * PARTITIONS
    with Simulator(SimulatorConfig(rate=500, seed=1)) as simulator:
        symbols = sorted(LISTINGS)[:30]
        producer = pipeline.producer(simulator.url, "--partitions", str(PARTITIONS), symbols=symbols)
        wait_for(lambda: min(keda_lag(pipeline, trigger) for trigger in watched) > 20)
        assert producer.stop() == 0
    found = {trigger["stream"]: keda_lag(pipeline, trigger) for trigger in watched}
    assert found == {key: lag for key, lag in lags().items() if key in found}
    pipeline.drain()
    assert [keda_lag(pipeline, trigger) for trigger in watched] == [0] * PARTITIONS
    assert set(lags().values()) == {0}
