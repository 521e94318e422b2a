"""Two races between consumers that lose entries if commands are sent in the naive order.

An intruder, another consumer of the group, reads just before the k-th command of the work under test, for every k.
An entry that the intruder has read must stay in the stream and in the pending list.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, cast

import pytest
import redis

from common.database.client import DatabaseClient
from common.errors import StreamOutageError
from common.settings import Secret
from common.streams.group import ConsumerGroup
from tests.support.pipeline import GROUP, Pipeline
from tests.support.sessions import StoredSession

Work = Callable[[redis.Redis, ConsumerGroup], object]


class Intruded(redis.Redis):
    """A client that runs an intruder just before command number `moment` (0: before the first)."""

    moment = -1
    sent = 0
    intrude: Callable[[], object]

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.sent == self.moment:
            self.intrude()
        self.sent += 1
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


def trim(_: redis.Redis, stream: ConsumerGroup) -> object:
    return stream.trim()


def naive_trim(client: redis.Redis, stream: ConsumerGroup) -> object:
    """Ask for the oldest pending entry, then for the last delivered. An entry read in between is trimmed."""
    oldest = cast("Any", client.xpending(stream.key, GROUP))["min"]
    delivered = cast("Any", client.xinfo_groups(stream.key))[0]["last-delivered-id"]
    return client.xtrim(stream.key, minid=min(oldest or delivered, delivered), approximate=False)


def remove_idle_consumers(_: redis.Redis, stream: ConsumerGroup) -> object:
    return stream.remove_idle_consumers(0)


def naive_remove_gone(client: redis.Redis, stream: ConsumerGroup) -> object:
    """Check, then delete the consumer. Entries it reads in between are deleted with its name."""
    for consumer in cast("Any", client.xinfo_consumers(stream.key, GROUP)):
        if consumer["pending"] == 0:
            client.xgroup_delconsumer(stream.key, GROUP, consumer["name"])
    return None


def leave(_: redis.Redis, stream: ConsumerGroup) -> object:
    stream.leave()
    return None


def lost(pipeline: Pipeline, work: Work, moment: int) -> tuple[bool, int]:
    """Whether the intruder at this moment lost an entry, and the number of commands that the work sent."""
    pipeline.redis.flushall()
    entries: list[dict[str, str]] = [{"n": str(n)} for n in range(4)]
    intruder = ConsumerGroup(pipeline.redis, "prices", GROUP, "same name")
    intruder.ensure_group()
    intruder.append(entries)
    intruder.ack([entry.id for entry in intruder.read(1)])  # the first is acked, three are unread
    with closing(cast("Intruded", Intruded.from_url(pipeline.servers.valkey.url))) as client:
        stream = ConsumerGroup(client, "prices", GROUP, "same name")
        client.moment, client.intrude = moment, lambda: intruder.read(3)
        work(client, stream)
        if client.sent <= moment:
            intruder.read(3)
        sent = client.sent
    given = intruder.read_own_pending(10)
    return [entry.fields for entry in given] != [{b"n": b"1"}, {b"n": b"2"}, {b"n": b"3"}], sent


@pytest.mark.parametrize("work", [trim, remove_idle_consumers, leave])
def test_entry_read_at_any_moment_survives_trimming(pipeline: Pipeline, work: Work) -> None:
    moment, sent = 0, 1
    while moment <= sent:
        is_lost, sent = lost(pipeline, work, moment)
        assert not is_lost, f"read before command {moment} of {sent}"
        moment += 1
    assert moment > 1


@pytest.mark.parametrize("work", [naive_trim, naive_remove_gone])
def test_race_test_detects_the_naive_order(pipeline: Pipeline, work: Work) -> None:
    assert any(lost(pipeline, work, moment)[0] for moment in range(4))


def test_lagging_second_group_prevents_trimming(pipeline: Pipeline) -> None:
    ours, other = pipeline.prices, ConsumerGroup(pipeline.redis, "prices", "research", "reader")
    for stream in (ours, other):
        stream.ensure_group()
    ours.append([{"n": str(n)} for n in range(10)])
    ours.ack([entry.id for entry in ours.read(10)])
    other.ack([entry.id for entry in other.read(4)])
    assert ours.trim() == 3  # all entries before the last one delivered to the other group
    assert [entry.fields for entry in other.read(10)] == [{b"n": b"%d" % n} for n in range(4, 10)]
    said = pipeline.processes.start("tickpipe", "status")
    assert said.wait() == 0
    assert "group research: 0 unread, 6 pending, 1 consumer  delays trimming" in said.said()
    doctor = pipeline.processes.start("tickpipe", "doctor")
    assert doctor.wait() == 1
    assert "BAD  group research lags: this group holds back trimming" in doctor.said()
    other.ack([entry.id for entry in other.read_own_pending(10)])
    well = pipeline.processes.start("tickpipe", "doctor")
    assert well.wait() == 0, well.said()
    assert "BAD" not in well.said()


def test_reports_that_several_consumers_sum_are_counted_once(pipeline: Pipeline) -> None:
    now = time.time_ns() // 1000
    for number in range(2000):
        pipeline.prices.statistics.publish(f"c{number}", stored=1, at=now - number)
    with ThreadPoolExecutor(4) as pool:
        folded = list(pool.map(pipeline.prices.statistics.prune, [now - 1999 + step for step in range(0, 2000, 20)]))
    found = pipeline.prices.statistics.read()
    assert sum(report["stored"] for report in found.values()) == 2000
    assert sum(folded) == 2000 - (len(found) - 1)
    assert found[""]["at"] < now - 10


def test_doctor_reports_a_lagging_group_with_advice(pipeline: Pipeline) -> None:
    pipeline.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        doctor = pipeline.processes.start("tickpipe", "doctor", DATABASE_URL="postgresql:///none?host=/nowhere")
        assert doctor.wait() == 1
        assert "BAD  Redis: maxmemory-policy allkeys-lru: CONFIG SET maxmemory-policy noeviction" in doctor.said()
        assert "BAD  database: " in doctor.said()
        assert "Traceback" not in doctor.said()
    finally:
        pipeline.redis.config_set("maxmemory-policy", "noeviction")


def test_entry_that_redis_refuses_fails_its_whole_batch(pipeline: Pipeline) -> None:
    with pytest.raises(StreamOutageError):
        pipeline.prices.append([{"n": "1"}, {}])
    assert pipeline.appended() == 0


def test_ids_are_compared_as_numbers(pipeline: Pipeline) -> None:
    """As text, 9-1 comes after 10-1."""
    stream = pipeline.prices
    stream.ensure_group()
    for entry_id in ("9-1", "9-9", "9-10", "10-1"):
        pipeline.redis.xadd("prices", {"n": entry_id}, id=entry_id)
    stream.read(4)
    stream.ack([b"9-1", b"9-9"])
    assert stream.trim() == 2
    stream.ack([b"9-10"])
    assert stream.trim() == 1
    assert [entry.id for entry in stream.read_own_pending(10)] == [b"10-1"]


def test_starting_consumer_reads_and_trims_a_full_redis(pipeline: Pipeline) -> None:
    """A full Redis refuses XGROUP CREATE even for an existing group, and only reading frees memory."""
    session = StoredSession(DatabaseClient(Secret(pipeline.database.url)), 1_767_571_200)
    pipeline.prices.ensure_group()
    pipeline.feed.ensure_group()
    pipeline.append([session.tick(seq) for seq in range(1, 5001)])
    used = cast("Any", pipeline.redis.info("memory"))["used_memory"]
    try:
        pipeline.redis.config_set("maxmemory", used - 100_000)
        with pytest.raises(StreamOutageError, match="maxmemory"):
            pipeline.append([session.tick(5001)])
        pipeline.drain()
        assert pipeline.database.count() == 5000
    finally:
        pipeline.redis.config_set("maxmemory", 0)
