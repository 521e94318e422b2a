"""How the primary is found from the answers of Sentinels and of the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import redis

from common.errors import ConfigurationError
from common.streams.lookup import ClusterLookup, SentinelLookup

Answer = Mapping[str, Any] | list[Any] | Exception
NODES = [("one", 1), ("two", 2), ("three", 3)]


class Servers:
    """Stands for redis.Redis: answers by the name of the host, and notes which hosts were asked."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, *, host: str, **_: object) -> Server:
        return Server(self, host)

    def answer(self, host: str) -> Any:
        self.asked.append(host)
        answer = self.answers[host]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Server:
    """A client of one server."""

    def __init__(self, servers: Servers, host: str) -> None:
        self._servers = servers
        self._host = host

    def sentinel_masters(self) -> Any:
        return self._servers.answer(self._host)

    def execute_command(self, *words: str) -> Any:
        assert words == ("CLUSTER", "SLOTS")
        return self._servers.answer(self._host)

    def close(self) -> None:
        pass


def servers(monkeypatch: pytest.MonkeyPatch, *answers: Answer) -> Servers:
    """Servers with the hosts of NODES and these answers."""
    found = Servers(dict(zip([host for host, _ in NODES], answers, strict=True)))
    monkeypatch.setattr(redis, "Redis", found)
    return found


def state(host: str, epoch: int, *, down: bool = False) -> dict[str, Any]:
    """A Sentinel's reply about the service `ticks`."""
    return {"ticks": {"ip": host, "port": 6379, "config-epoch": epoch, "is_sdown": down, "is_odown": False}}


AWAY = redis.ConnectionError("away")


def test_newest_configuration_of_all_sentinels_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one was paused during the failover."""
    servers(monkeypatch, state("old", 3), AWAY, state("new", 4))
    assert SentinelLookup(NODES, "ticks", {})() == ("new", 6379)


def test_primary_that_is_down_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = servers(monkeypatch, state("old", 3, down=True), AWAY, AWAY)
    sentinels = SentinelLookup(NODES, "ticks", {})
    with pytest.raises(redis.ConnectionError):
        sentinels()
    found.answers["two"] = state("new", 4)
    assert sentinels() == ("new", 6379)


def test_unknown_service_needs_a_person_unless_it_was_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Sentinel that is being set up again does not know it yet."""
    found = servers(monkeypatch, {"prices": {}}, AWAY, AWAY)
    sentinels = SentinelLookup(NODES, "ticks", {})
    with pytest.raises(ConfigurationError, match="'ticks': they know prices"):
        sentinels()
    found.answers["one"] = state("a", 1)
    assert sentinels() == ("a", 6379)
    found.answers["one"] = {}
    with pytest.raises(redis.ConnectionError):
        sentinels()


def test_other_server_than_a_sentinel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    servers(monkeypatch, redis.ResponseError("unknown command 'SENTINEL'"), AWAY, AWAY)
    with pytest.raises(ConfigurationError, match="does not name a Sentinel"):
        SentinelLookup(NODES, "ticks", {})()


def shard(host: bytes | None, first: int = 0, last: int = 16_383) -> list[Any]:
    """Slots, their primary and a replica, as CLUSTER SLOTS gives them."""
    return [first, last, [host, 7000, b"id"], [b"replica", 7001, b"id"]]


def test_next_node_is_asked_if_one_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    found = servers(monkeypatch, AWAY, [shard(b"primary")], AWAY)
    cluster = ClusterLookup(NODES, "prices", {})
    assert cluster() == ("primary", 7000)
    assert found.asked == ["one", "two"]


def test_each_call_begins_with_another_node_and_asks_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    found = servers(monkeypatch, [shard(b"primary")], [shard(b"primary")], [shard(b"primary")])
    found.answers |= {"primary": [shard(b"moved")], "replica": AWAY}
    cluster = ClusterLookup(NODES, "prices", {})
    assert [cluster() for _ in range(5)] == [("primary", 7000)] * 4 + [("moved", 7000)]


def test_empty_host_means_the_node_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    servers(monkeypatch, [shard(None)], AWAY, AWAY)
    assert ClusterLookup(NODES, "prices", {})() == ("one", 7000)


def test_slot_that_no_node_has_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot of `prices` is 3264."""
    servers(monkeypatch, [shard(b"primary", 0, 100)], AWAY, redis.ResponseError("CLUSTERDOWN"))
    with pytest.raises(redis.RedisError):
        ClusterLookup(NODES, "prices", {})()
    servers(monkeypatch, *[[shard(b"primary", 0, 100)]] * 3)
    with pytest.raises(redis.exceptions.ClusterDownError, match="the slot"):
        ClusterLookup(NODES, "prices", {})()


def test_server_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    servers(monkeypatch, redis.ResponseError("This instance has cluster support disabled"), AWAY, AWAY)
    with pytest.raises(ConfigurationError, match="does not name a Redis Cluster"):
        ClusterLookup(NODES, "prices", {})()
