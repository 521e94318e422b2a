"""The servers that a Redis URL names, and how each new connection finds the primary."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from common import urls
from common.errors import ConfigurationError
from common.settings import Secret
from common.streams.address import Address, parse
from common.streams.client import connect, is_cluster
from common.streams.lookup import ClusterLookup


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "redis+sentinel://h1:1,h2/ticks/3",
            Address("sentinel", [("h1", 1), ("h2", 26379)], "ticks", {"db": 3}, {"username": None, "password": None}),
        ),
        (
            "redis+sentinel://u:p%40@[::1]:9/my%20service?sentinel_password=s%2F",
            Address(
                "sentinel",
                [("::1", 9)],
                "my service",
                {"db": 0, "username": "u", "password": "p@"},
                {"username": None, "password": "s/"},
            ),
        ),
        (
            "redis+cluster://h1,h2:7000/0?health_check_interval=3",
            Address(
                "cluster",
                [("h1", 6379), ("h2", 7000)],
                "",
                {"db": 0, "health_check_interval": 3},
                {"username": None, "password": None},
            ),
        ),
    ],
)
def test_url_names_nodes_service_and_options(url: str, expected: Address) -> None:
    urls.refuse_redis(url)
    assert parse(url) == expected


def test_tls_applies_to_sentinels_and_nodes() -> None:
    found = parse("rediss+sentinel://:p@h/ticks?ssl_ca_certs=/ca.pem")
    assert found.options["connection_class"] is redis.SSLConnection
    assert found.options["ssl_ca_certs"] == found.sentinel_options["ssl_ca_certs"] == "/ca.pem"
    assert found.sentinel_options["password"] is None


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+sentinel://h:26379", "the name of the service"),
        ("redis+sentinel://h:26379/", "the name of the service"),
        ("redis+sentinel://h/ticks/x", "the name of the service"),
        ("redis+cluster://h/1", "database 0 only"),
        ("redis+cluster://h?db=3", "database 0 only"),
        ("redis+cluster://h1,,h2", "it has no host"),
        ("redis+cluster://h1,h2:0", "port is not between"),
        ("redis+cluster://h1:x,h2", "a port that is a number"),
        ("redis+nonsense://h", "does not begin with"),
        ("redis+cluster://h?nonsense=1", "does not know a parameter"),
        ("redis+sentinel://:p4ss/word@h/ticks", "'@' follows"),
        ("redis+cluster://:p4ss@h#1", "has a '#'"),
    ],
)
def test_invalid_url_is_refused_without_quoting_it(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL is not a Redis URL") as caught:
        connect(Secret(url), "prices")
    assert reason in str(caught.value)
    assert "p4ss" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "cluster"),
    [("redis://h", False), ("redis+sentinel://h/ticks", False), ("rediss+cluster://u:p@h1,h2", True)],
)
def test_client_connects_at_the_first_command_only(url: str, cluster: bool) -> None:
    client = connect(Secret(url), "prices")
    assert is_cluster(client) is cluster
    client.close()


SLOTS = [[0, 9999, [b"h1", 1, b"id"], [b"h2", 2, b"id"]], [10_000, 16_383, [b"", 3, b"id"]]]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The reply of each node to CLUSTER SLOTS, by host. A node without one is down."""
    replies: dict[str, Any] = {}

    class Node:
        def __init__(self, host: str, **_: object) -> None:
            self._host = host

        def execute_command(self, *_: str) -> object:
            reply = replies.get(self._host, redis.ConnectionError("refused"))
            if isinstance(reply, Exception):
                raise reply
            return reply

        def close(self) -> None: ...

    monkeypatch.setattr(redis, "Redis", Node)
    return replies


def test_cluster_names_the_primary_of_the_slot(nodes: dict[str, Any]) -> None:
    nodes["seed"] = SLOTS
    assert ClusterLookup([("down", 1), ("seed", 2)], "prices", {})() == ("h1", 1)  # slot 3628
    assert ClusterLookup([("seed", 2)], "foo", {})() == ("seed", 3)  # slot 12182


def test_node_that_was_learned_is_asked_when_the_seeds_are_down(nodes: dict[str, Any]) -> None:
    nodes["seed"] = SLOTS
    lookup = ClusterLookup([("seed", 2)], "prices", {})
    lookup()
    nodes.clear()
    nodes["h2"] = [[0, 16_383, [b"h2", 2, b"id"]]]
    assert lookup() == ("h2", 2)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (redis.ConnectionError("refused"), redis.ConnectionError),
        ([[0, 9, [b"h1", 1, b"id"]]], redis.exceptions.ClusterDownError),
        (redis.ResponseError("This instance has cluster support disabled"), ConfigurationError),
    ],
)
def test_missing_primary_is_an_error(nodes: dict[str, Any], reply: object, expected: type[Exception]) -> None:
    nodes["seed"] = reply
    with pytest.raises(expected):
        ClusterLookup([("seed", 2)], "prices", {})()


def test_a_node_with_an_old_view_is_not_asked_twice_in_a_row(nodes: dict[str, Any]) -> None:
    nodes |= {"old": [[0, 16_383, [b"old", 1, b"id"]]], "new": [[0, 16_383, [b"new", 2, b"id"]]]}
    lookup = ClusterLookup([("old", 1), ("new", 2)], "prices", {})
    assert [lookup(), lookup()] == [("old", 1), ("new", 2)]
