"""Finds the primary behind Sentinels or in a Redis Cluster. Each new connection looks it up.

redis-py's RedisCluster is not used: it sends WAIT in a pipeline to any node, and refuses EVALSHA in a pipeline and
XREADGROUP on keys of several slots. A stream is in one slot, so one plain client of the slot's primary is enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Protocol, cast

import redis
from redis.crc import key_slot

from common.errors import ConfigurationError

Node = tuple[str, int]

#: Seconds that a Sentinel or a node may take to name the primary, at most.
LOOKUP_TIMEOUT = 1.0


class Lookup(Protocol):
    """Finds a primary."""

    def __call__(self) -> Node:
        """Host and port of the primary now. Raises redis-py's errors, and ConfigurationError."""


class LookupConnection(redis.Connection):
    """A connection that looks up its address when it connects."""

    def __init__(self, *, lookup: Lookup, **options: Any) -> None:
        self._lookup = lookup
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def connect(self) -> None:
        """Look up the address and connect, unless the connection is open."""
        if not self.is_connected:
            self.host, self.port = self._lookup()
        super().connect()  # type: ignore[no-untyped-call]


class TlsLookupConnection(LookupConnection, redis.SSLConnection):
    """A LookupConnection with TLS."""


class SentinelLookup:
    """Asks Sentinels for the primary of a service."""

    def __init__(self, nodes: Sequence[Node], service: str, options: dict[str, Any]) -> None:
        options = {name: value for name, value in options.items() if value not in {None, False}}
        options["socket_connect_timeout"] = options["socket_timeout"] = LOOKUP_TIMEOUT
        self._sentinels = [redis.Redis(host=host, port=port, **options) for host, port in nodes]
        self._service = service
        self._found = False

    def __call__(self) -> Node:
        """See Lookup. Raises ConfigurationError if a Sentinel does not know the service, until one has known it.

        After a failover, a Sentinel that was paused or cut off still names the old primary. So all Sentinels are asked,
        and the answer with the newest configuration is used.
        """
        answers: list[tuple[int, Node]] = []
        error: redis.RedisError = redis.ConnectionError("no Sentinel in REDIS_URL answers")
        for sentinel in self._sentinels:
            try:
                known = cast("dict[str, dict[str, Any]]", sentinel.sentinel_masters())
            except redis.ResponseError as refused:
                raise ConfigurationError(
                    f"REDIS_URL does not name a Sentinel ({refused}): write redis://HOST:PORT"
                ) from None
            except redis.RedisError as failed:
                error = failed
                continue
            if state := known.get(self._service):
                if not state["is_sdown"] and not state["is_odown"]:
                    answers.append((int(state["config-epoch"]), (str(state["ip"]), int(state["port"]))))
                error = redis.ConnectionError(f"the Sentinels name no primary of {self._service!r} that is up")
            elif not self._found:
                raise ConfigurationError(
                    f"the Sentinels in REDIS_URL do not know the service {self._service!r}: they know "
                    f"{', '.join(sorted(known)) or 'none'}"
                )
        if not answers:
            raise error
        self._found = True
        return max(answers)[1]


class ClusterLookup:
    """Asks the nodes of a Redis Cluster, each in turn, for the primary of a key's slot."""

    def __init__(self, nodes: Sequence[Node], key: str, options: dict[str, Any]) -> None:
        self._nodes = deque(nodes)
        self._slot = key_slot(key.encode())
        self._options = options | {"socket_connect_timeout": LOOKUP_TIMEOUT, "socket_timeout": LOOKUP_TIMEOUT}

    def __call__(self) -> Node:
        """See Lookup. The next call asks another node first: this one may be down, or know an old state."""
        error: redis.RedisError = redis.ConnectionError("no node of the Redis Cluster in REDIS_URL answers")
        for host, port in [*self._nodes]:
            self._nodes.rotate(-1)
            try:
                with closing(redis.Redis(host=host, port=port, **self._options)) as node:
                    shards = node.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
            except redis.ResponseError as refused:
                if "cluster support disabled" in str(refused):
                    raise ConfigurationError(
                        f"REDIS_URL does not name a Redis Cluster ({refused}): write redis://HOST:PORT"
                    ) from None
                error = refused
            except redis.RedisError as failed:
                error = failed
            else:
                if found := self._primary(shards, host):
                    return found
                error = redis.exceptions.ClusterDownError(f"no node of the Redis Cluster has the slot {self._slot}")
        raise error

    def _primary(self, shards: Sequence[Any], asked: str) -> Node | None:
        """The primary of the slot in a reply to CLUSTER SLOTS. Later calls may ask all nodes in the reply.

        An empty host means the node that was asked.
        """
        found = None
        for first, last, *members in shards:
            nodes = [(host.decode() if host else asked, int(port)) for host, port, *_ in members]
            self._nodes.extend(node for node in nodes if node not in self._nodes)
            if first <= self._slot <= last:
                found = nodes[0]
        return found
