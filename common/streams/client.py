"""Connects to Redis: one server, the primary that Sentinels name, or the primary of a key's slot in a Redis Cluster."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError
from redis.retry import Retry

from common import urls
from common.errors import ConfigurationError, StreamOutageError
from common.settings import Secret
from common.streams import address
from common.streams.lookup import ClusterLookup, Lookup, LookupConnection, SentinelLookup, TlsLookupConnection

#: Timeout of a connection attempt and of a reply, in seconds.
TIMEOUT = 5.0
#: Errors of a node that is not the primary of this key. MOVED is an AskError, MASTERDOWN a ClusterDownError.
NOT_PRIMARY = (ReadOnlyError, AskError, ClusterDownError)


def connect(url: Secret, key: str, *, timeout: float = TIMEOUT) -> redis.Redis:
    """Return a client for commands on this key and those beside it, without connecting yet. `timeout` is in seconds.

    Behind Sentinels and in a cluster, each new connection looks up the primary of the key. Replies stay bytes: with
    `decode_responses`, one entry with invalid UTF-8 would make every read of it fail. Raises ConfigurationError for an
    invalid URL.
    """
    urls.refuse_redis(url.reveal())
    common: dict[str, Any] = {
        "socket_connect_timeout": timeout,
        "socket_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),  # common.retry retries, and logs each attempt
        "protocol": 2,
    }
    try:
        found = address.parse(url.reveal())
        if found.kind == "server":
            client = redis.Redis.from_url(url.reveal(), **common)
            pool = client.connection_pool
        else:
            pool = redis.ConnectionPool(**_looked_up(found, key, common))
            client = redis.Redis.from_pool(pool)
        pool.connection_class(**pool.connection_kwargs)  # does not connect, but rejects unknown URL parameters
    except (ValueError, TypeError, redis.RedisError):
        raise urls.redis_error("REDIS_URL", "redis-py does not know a parameter after '?', or its value") from None
    return client


def _looked_up(found: address.Address, key: str, common: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a pool whose connections look up the address of their server."""
    options = found.options | common
    tls = options.pop("connection_class", None) is redis.SSLConnection
    lookup: Lookup = (
        SentinelLookup(found.nodes, found.service, found.sentinel_options | common | {"ssl": tls})
        if found.kind == "sentinel"
        else ClusterLookup(found.nodes, key, options | {"ssl": tls})
    )
    return {**options, "connection_class": TlsLookupConnection if tls else LookupConnection, "lookup": lookup}


def node_like(client: redis.Redis, host: str, port: int) -> redis.Redis:
    """A client for another node, with the login and the TLS settings of this client."""
    pool = client.connection_pool
    options = {name: value for name, value in pool.connection_kwargs.items() if name not in {"lookup", "path", "db"}}
    kind = redis.SSLConnection if issubclass(pool.connection_class, redis.SSLConnection) else redis.Connection
    other = redis.ConnectionPool(**{**options, "host": host, "port": port, "connection_class": kind})
    return redis.Redis.from_pool(other)


def is_cluster(client: redis.Redis) -> bool:
    """Whether the URL of this client names a Redis Cluster."""
    return isinstance(client.connection_pool.connection_kwargs.get("lookup"), ClusterLookup)


def slot_primary(client: redis.Redis) -> tuple[str, int] | None:
    """Host and port of the primary that has the client's key now; None if its URL names no Redis Cluster.

    Raises redis-py's errors.
    """
    lookup = client.connection_pool.connection_kwargs.get("lookup")
    return lookup() if isinstance(lookup, ClusterLookup) else None


def look_up_again(client: redis.Redis) -> None:
    """Close the client's unused connections, so that the next command looks up the address and connects.

    A connection in use gets its own error if it leads to the old node.
    """
    client.connection_pool.disconnect(inuse_connections=False)


def expect_primary(client: redis.Redis) -> None:
    """Raise StreamOutageError if the client is connected to a replica, ConfigurationError for a URL of the wrong form.

    A demoted node still answers reads, so commands that only read would never fail. HELLO needs no right. A proxy
    without HELLO counts as a primary.
    """
    try:
        reply = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        return
    about = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    if about.get(b"mode") == b"cluster" and not is_cluster(client):
        raise ConfigurationError(
            "REDIS_URL names one node of a Redis Cluster: write redis+cluster://HOST:PORT, with several nodes "
            "separated by commas"
        )
    if about.get(b"mode") == b"sentinel":
        raise ConfigurationError("REDIS_URL names a Sentinel: write redis+sentinel://HOST:PORT/SERVICE")
    if about.get(b"role") == b"replica":
        look_up_again(client)
        raise StreamOutageError(
            "Redis: the node at the address in REDIS_URL is a replica; the next try looks up the address again"
        )
