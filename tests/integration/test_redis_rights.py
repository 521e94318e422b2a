"""Redis keys and rights are checked at startup. A later refusal repeats no acknowledged entry."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import redis

from common import rights
from common.errors import ConfigurationError
from common.streams.group import ConsumerGroup
from common.streams.registry import ChannelRegistry
from tests.support.pipeline import GROUP, Pipeline
from tests.support.processes import Running
from tests.support.waiting import wait_for
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

NewUser = Callable[..., str]


@pytest.fixture
def new_user(pipeline: Pipeline) -> Iterator[NewUser]:
    """Creates a Redis user with only these rules and returns the URL of its login."""
    names: list[str] = []

    def make(*rules: str) -> str:
        name, password = f"user-{len(names)}", secrets.token_hex(8)
        names.append(name)
        acl(pipeline, "SETUSER", name, "reset", "on", f">{password}", *rules)
        return f"{pipeline.servers.valkey.url}?username={name}&password={password}"

    yield make
    for name in names:
        acl(pipeline, "DELUSER", name)


def acl(pipeline: Pipeline, *words: str) -> None:
    pipeline.redis.execute_command("ACL", *words)  # type: ignore[no-untyped-call]


def producer_once(pipeline: Pipeline, **environ: str) -> Running:
    """Start a producer whose checks must fail before it connects to the feed."""
    return pipeline.producer("ws://127.0.0.1:9/nothing-listens-here", **environ)


def refusal(process: Running) -> str:
    """The only output line of a process that exits with 2."""
    assert process.wait() == 2
    (line,) = process.last_log_line()
    return line


# At startup: keys.


@pytest.mark.parametrize("key", ["prices", "prices:feed"])
def test_key_of_another_type_stops_the_producer_at_startup(pipeline: Pipeline, key: str) -> None:
    pipeline.redis.set(key, "x")
    assert f"the key '{key}' in this Redis is a string, not a stream" in refusal(producer_once(pipeline))
    assert pipeline.redis.keys() == [key.encode()]


@pytest.mark.parametrize(
    ("key", "kind"),
    [("prices", "stream"), ("prices:feed", "stream"), ("{prices}:consumers", "hash"), ("{prices}:channels", "set")],
)
def test_key_of_another_type_stops_the_consumer_at_startup(pipeline: Pipeline, key: str, kind: str) -> None:
    pipeline.redis.set(key, "x")
    assert f"the key '{key}' in this Redis is a string, not a {kind}" in refusal(pipeline.consumer())


# At startup: rights.


def test_user_limited_to_one_key_stops_the_producer_at_startup(pipeline: Pipeline, new_user: NewUser) -> None:
    line = refusal(producer_once(pipeline, REDIS_URL=new_user("+@all", "~prices")))
    assert line.startswith("producer: Redis refuses type, xadd, evalsha on the key 'prices:feed': ")
    assert line.endswith("ACL SETUSER USER ~prices:feed +type +xadd +evalsha")


def test_user_limited_to_the_streams_stops_the_consumer_at_startup(pipeline: Pipeline, new_user: NewUser) -> None:
    url = new_user("+@all", "~prices", "~prices:feed")
    line = refusal(pipeline.consumer(REDIS_URL=url))
    assert line.startswith("consumer: Redis refuses type, smembers on the key '{prices}:channels': ")
    acl(pipeline, "SETUSER", "user-0", "~{prices}:channels")
    line = refusal(pipeline.consumer(REDIS_URL=url))
    assert line.startswith("consumer: Redis refuses type, hset, hgetall, hdel on the key '{prices}:consumers': ")


def stream_of(url: str, key: str = "prices") -> ConsumerGroup:
    return ConsumerGroup(redis.Redis.from_url(url, protocol=2), key, GROUP, "me")


def test_each_missing_right_is_reported(pipeline: Pipeline, new_user: NewUser) -> None:
    pipeline.prices.ensure_group()
    checks: list[tuple[Callable[[ConsumerGroup], object], rights.Commands]] = [
        (ConsumerGroup.check_append, rights.append("prices")),
        (ConsumerGroup.check_consume, rights.consume("prices", GROUP, "me")),
        (lambda stream: stream.statistics.check(), rights.report("{prices}:consumers")),
        (lambda stream: ChannelRegistry(stream).found(), rights.members("{prices}:channels")),
        (ConsumerGroup.check_replay, {**rights.remember("{prices}:database"), **rights.lock("{prices}:replay:x")}),
        (
            lambda stream: stream.check_append_once(0),
            {**rights.append("prices"), **rights.mark("{prices}:high:*"), **rights.fence("{prices}:fence")},
        ),
    ]
    for check, commands in checks:
        for right in (*rights.look("prices"), *commands):
            url = new_user("~*", "+@all", f"-{right}")
            with pytest.raises(ConfigurationError, match=rf"Redis refuses {right.replace('|', '[|]')} on the key"):
                check(stream_of(url))


def test_startup_checks_change_nothing(pipeline: Pipeline) -> None:
    pipeline.prices.append([{"seq": "1"}, {"seq": "2"}])
    for stream in (pipeline.prices, pipeline.feed):
        stream.ensure_group()
    pipeline.prices.read(1)
    pipeline.prices.statistics.publish("test", at=1)

    def everything() -> dict[bytes, object]:
        """Every key with its content: streams with groups, consumers and their times."""
        return {key: pipeline.redis.dump(key) for key in cast("list[bytes]", pipeline.redis.keys())}

    before = everything()
    for stream in (pipeline.prices, pipeline.feed):
        assert stream.check()
        assert stream.check_append()
        assert stream.check_consume()
    assert pipeline.prices.statistics.check()
    assert pipeline.prices.check_append_once(1)
    pipeline.prices.check_replay()
    assert not stream_of(pipeline.servers.valkey.url, "other").check_consume()
    assert everything() == before


def test_checked_rights_are_sufficient_for_a_pipeline(pipeline: Pipeline, new_user: NewUser) -> None:
    def user(*commands: rights.Commands) -> str:
        named = {f"+{right}" for each in commands for right in each}
        return new_user("~prices", "~prices:feed", "~{prices}:*", *sorted(named))

    look = rights.look("")
    producer_url = user(look, rights.append(""))
    replay = rights.remember(""), rights.lock("")
    consumer_url = user(look, rights.consume("", "", ""), rights.report(""), rights.members(""), *replay)
    with Simulator(SimulatorConfig(rate=100)) as simulator:
        consumer = pipeline.consumer(REDIS_URL=consumer_url)
        producer = pipeline.producer(simulator.url, symbols=["AAPL"], REDIS_URL=producer_url)
        pipeline.wait_until_stored(100)
        assert producer.stop() == 0
    assert pipeline.consumer("--drain", "--claim-idle", "0.5", REDIS_URL=consumer_url).wait() == 0
    assert consumer.stop() == 0
    assert "NOPERM" not in consumer.said() + producer.said()
    assert pipeline.last_seqs() == [pipeline.database.count()]


# At runtime: no acknowledged entry is repeated.


def in_stream(pipeline: Pipeline) -> Counter[tuple[bytes, bytes]]:
    """The number of stream entries of each price."""
    found = cast("list[tuple[bytes, dict[bytes, bytes]]]", pipeline.redis.xrange("prices"))
    return Counter((fields[b"session"], fields[b"seq"]) for _, fields in found)


@pytest.mark.parametrize("fault", ["another type", "no right"])
def test_prices_are_appended_once_while_the_feed_stream_is_refused(
    pipeline: Pipeline, new_user: NewUser, fault: str
) -> None:
    url = new_user("+@all", "~prices", "~prices:feed")
    with Simulator(SimulatorConfig(rate=200)) as simulator:
        # On a busy machine a short timeout would rightly repeat an unanswered append.
        producer = pipeline.producer(simulator.url, "--append-timeout", "30", symbols=["AAPL"], REDIS_URL=url)
        wait_for(lambda: pipeline.redis.exists("prices:feed"))
        if fault == "another type":
            pipeline.redis.rename("prices:feed", "kept")
            pipeline.redis.set("prices:feed", "x")
        else:
            acl(pipeline, "SETUSER", "user-0", "resetkeys", "~prices")
        wait_for(lambda: producer.said().count("WARNING producer.publisher: ") >= 3, message="it was tried again")
        before = pipeline.appended()
        wait_for(lambda: pipeline.appended() > before + 1000, message="prices go on")
        assert set(in_stream(pipeline).values()) == {1}
        if fault == "another type":
            pipeline.redis.rename("kept", "prices:feed")
        else:
            acl(pipeline, "SETUSER", "user-0", "~prices:feed")
        assert producer.stop() == 0
    events = Counter((each.session, each.number) for each in pipeline.feed_entries())
    assert set(events.values()) == set(in_stream(pipeline).values()) == {1}
    pipeline.drain()
    assert pipeline.last_seqs() == [pipeline.database.count()]


def test_consumer_continues_while_its_statistics_are_refused(pipeline: Pipeline) -> None:
    with Simulator(SimulatorConfig(rate=100)) as simulator:
        consumer = pipeline.consumer()
        producer = pipeline.producer(simulator.url, symbols=["AAPL"])
        wait_for(lambda: pipeline.redis.exists("{prices}:consumers"))
        pipeline.redis.delete("{prices}:consumers")
        pipeline.redis.set("{prices}:consumers", "x")
        consumer.wait_until_said("the key '{prices}:consumers' has another type")
        pipeline.wait_until_stored(pipeline.database.count() + 200)
        pipeline.redis.delete("{prices}:consumers")
        wait_for(lambda: pipeline.redis.exists("{prices}:consumers"), message="the statistics are written again")
        assert producer.stop() == 0
    assert consumer.stop() == 0
    assert "recovering" not in consumer.said()
    assert consumer.said().count("has another type") == 1


def test_dead_letters_are_requeued_once_while_one_stream_is_refused(pipeline: Pipeline) -> None:
    pipeline.prices.append([{"odd": "1"}])
    pipeline.feed.append([{"odd": "2"}])
    pipeline.drain()
    pipeline.redis.delete("prices:feed", "prices")
    pipeline.redis.set("prices:feed", "x")
    for _ in range(2):
        assert pipeline.processes.start("tickpipe", "dead-letters", "retry").wait() == 1
    assert cast("Any", pipeline.redis.xlen("prices")) == 1
    assert pipeline.database.count("dead_letters") == 1
