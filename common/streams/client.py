"""Connects to Redis."""

from __future__ import annotations

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError
from redis.retry import Retry

from common import urls
from common.errors import StreamOutageError
from common.settings import Secret

#: Timeout of a connection attempt and of a reply, in seconds.
TIMEOUT = 5.0
#: Errors of a node that is not the primary of this key. MOVED is an AskError, MASTERDOWN a ClusterDownError.
NOT_PRIMARY = (ReadOnlyError, AskError, ClusterDownError)


def connect(url: Secret, *, timeout: float = TIMEOUT) -> redis.Redis:
    """Return a client for this URL, without connecting yet. `timeout` is in seconds.

    Replies stay bytes: with `decode_responses`, one entry with invalid UTF-8 would make every read of it fail. Raises
    ConfigurationError for an invalid URL.
    """
    urls.refuse_redis(url.reveal())
    try:
        client = redis.Redis.from_url(
            url.reveal(),
            socket_connect_timeout=timeout,
            socket_timeout=timeout,
            retry=Retry(NoBackoff(), 0),  # common.retry retries, and logs each attempt
            protocol=2,
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # does not connect, but rejects unknown URL parameters
    except (ValueError, TypeError, redis.RedisError):
        raise urls.redis_error("REDIS_URL", "redis-py does not know a parameter after '?', or its value") from None
    return client


def look_up_again(client: redis.Redis) -> None:
    """Close the client's unused connections, so that the next command looks up the address and connects.

    A connection in use gets its own error if it leads to the old node.
    """
    client.connection_pool.disconnect(inuse_connections=False)


def expect_primary(client: redis.Redis) -> None:
    """Raise StreamOutageError if the client is connected to a replica.

    A demoted node still answers reads, so commands that only read would never fail. HELLO needs no right. A proxy
    without HELLO counts as a primary.
    """
    try:
        reply = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        return
    about = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    if about.get(b"role") == b"replica":
        look_up_again(client)
        raise StreamOutageError(
            "Redis: the node at the address in REDIS_URL is a replica; the next try looks up the address again"
        )
