"""Stored entries stay in the streams for a while. Entries that are not stored yet are never trimmed."""

from __future__ import annotations

import pytest

from tests.support.pipeline import Pipeline
from tests.support.waiting import wait_for

#: Seconds.
LONG = 3600.0


def fill(pipeline: Pipeline, count: int) -> None:
    """Append entries, and acknowledge the first half of them."""
    pipeline.prices.ensure_group()
    pipeline.prices.append([{"seq": str(number), "text": "x" * 500} for number in range(count)])
    pipeline.prices.ack([entry.id for entry in pipeline.prices.read(count // 2)])


def length(pipeline: Pipeline) -> int:
    return pipeline.prices.backlog().length


def test_stored_entries_stay_for_the_time(pipeline: Pipeline) -> None:
    fill(pipeline, 200)
    assert pipeline.prices.trim(keep=LONG) == 0
    wait_for(lambda: pipeline.prices.trim(keep=0.05) == 99, message="the time is over")
    assert pipeline.prices.backlog()[1:4] == (101, 100, 0)


def test_memory_limits_the_time(pipeline: Pipeline) -> None:
    fill(pipeline, 200)
    wait_for(lambda: pipeline.prices.trim(keep=LONG, max_bytes=10_000) > 0, message="some of them are trimmed")
    assert length(pipeline) >= 101
    wait_for(lambda: pipeline.prices.trim(keep=LONG, max_bytes=1) + 101 >= length(pipeline))
    assert pipeline.prices.backlog().lag == 100


def test_large_limit_changes_nothing(pipeline: Pipeline) -> None:
    fill(pipeline, 200)
    assert pipeline.prices.trim(keep=LONG, max_bytes=1 << 30) == 0
    assert length(pipeline) == 200


def test_consumer_keeps_entries_unless_redis_is_nearly_full(breakable_pipeline: Pipeline) -> None:
    """A full Redis would stop the producer."""
    pipeline = breakable_pipeline
    fill(pipeline, 200)
    assert not pipeline.prices.is_nearly_full()
    consumer = pipeline.consumer("--stream-keep", "1h", "--claim-idle", "0.5", "--log-level", "DEBUG")
    consumer.wait_until_said("housekeeping: 0 entries of prices trimmed")
    wait_for(lambda: pipeline.prices.backlog()[2:4] == (0, 0), message="all are dead letters")
    assert length(pipeline) == 200
    pipeline.redis.config_set("maxmemory", int(pipeline.redis.info("memory")["used_memory"] * 1.05))
    try:
        wait_for(lambda: length(pipeline) <= 1, message="all that is acknowledged is trimmed")
    finally:
        pipeline.redis.config_set("maxmemory", 0)


@pytest.mark.parametrize("text", ["10x", "-1", "", "1.5h", "1 h"])
def test_invalid_time_is_refused(pipeline: Pipeline, text: str) -> None:
    process = pipeline.consumer(f"--stream-keep={text}")
    assert process.wait() == 2
    assert process.last_log_line() == [f"consumer: --stream-keep {text!r} is not a span of time. Examples: 10m, 1h, 0"]
