"""Connects to Redis."""

from __future__ import annotations

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ClusterDownError, ReadOnlyError
from redis.retry import Retry

from common import urls
from common.errors import StreamOutageError
from common.settings import Secret

#: Seconds to wait for Redis: to connect, and for an answer.
TIMEOUT = 5.0
#: Errors of a node that is not the primary of this key. MOVED is an AskError, MASTERDOWN a ClusterDownError.
NOT_PRIMARY = (ReadOnlyError, AskError, ClusterDownError)


def connect(url: Secret, *, timeout: float = TIMEOUT) -> redis.Redis:
    """A client for this Redis URL. Nothing is sent yet; a URL that cannot be one raises ConfigurationError.

    Replies stay bytes: with `decode_responses` a single 0xff byte in an entry makes every read raise, for ever.
    """
    urls.refuse_redis(url.reveal())
    try:
        client = redis.Redis.from_url(
            url.reveal(),
            socket_connect_timeout=timeout,
            socket_timeout=timeout,
            retry=Retry(NoBackoff(), 0),  # retries are ours: one place, one log line a try
            protocol=2,
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # connects to nothing, but refuses a `?parameter` it lacks
    except (ValueError, TypeError, redis.RedisError):
        raise urls.redis_error("REDIS_URL", "redis-py does not know a parameter after '?', or its value") from None
    return client


def look_up_again(client: redis.Redis) -> None:
    """Close the connections of this client that are not in use: the next command looks up the address and connects.

    A connection in use gets its own error if it leads to the old node.
    """
    client.connection_pool.disconnect(inuse_connections=False)


def expect_primary(client: redis.Redis) -> None:
    """Raise StreamOutageError if the client is connected to a replica.

    A node that was demoted still answers reads, so a command that only reads would never fail. HELLO needs no right.
    A proxy without HELLO counts as a primary.
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
