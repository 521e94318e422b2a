"""A Redis primary and replica behind one address, and a Redis cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from tests.support.folders import temporary_folder
from tests.support.ports import free_port
from tests.support.tls import Forwarder
from tests.support.waiting import wait_for
from tickpipe.local.servers.valkey import ValkeyServer


class Node:
    """A Valkey on a local TCP port, and a client that bypasses the forwarder."""

    def __init__(self, server: ValkeyServer, port: int) -> None:
        self.server = server
        self.port = port
        self.admin: redis.Redis = redis.Redis.from_url(server.url, protocol=2)

    def run_id(self) -> str:
        """The run id of the server process."""
        return run_id(self.admin)

    def command(self, *words: str | int) -> Any:
        """Send one command."""
        return self.admin.execute_command(*words)  # type: ignore[no-untyped-call]


def run_id(client: redis.Redis) -> str:
    """The run id of the server behind this client."""
    return str(client.info("server")["run_id"])


@contextmanager
def redis_nodes(count: int, **settings: str) -> Iterator[list[Node]]:
    """Start nodes. Call this from the main thread."""
    nodes: list[Node] = []
    with temporary_folder() as folder:
        try:
            for number in range(count):
                port = free_port()
                server = ValkeyServer(folder / f"node-{number}", settings={"port": str(port), **settings})
                server.start()
                nodes.append(Node(server, port))
            yield nodes
        finally:
            for node in nodes:
                node.admin.close()
                node.server.stop()


class FailoverPair:
    """A primary and a replica behind one address, which can be switched like a DNS name or a virtual IP."""

    def __init__(self, primary: Node, replica: Node) -> None:
        self.primary = primary
        self.replica = replica
        self.forwarder = Forwarder(("127.0.0.1", primary.port), None)
        self.url = f"redis://127.0.0.1:{self.forwarder.port}/0"

    def replicate(self) -> None:
        """Make the second node a replica of the first and wait for its initial sync."""
        self.replica.command("REPLICAOF", "127.0.0.1", self.primary.port)
        wait_for(self._in_step, message="the replica has all that the primary has")

    def fail_over(self) -> None:
        """Promote the replica, demote the primary, then switch the address. Open connections stay on the old node.

        Writes are paused, so that none is lost between the two nodes.
        """
        self.primary.command("CLIENT", "PAUSE", 60_000, "WRITE")
        wait_for(self._in_step, message="the replica has all that the primary has")
        self.replica.command("REPLICAOF", "NO", "ONE")
        self.primary.command("REPLICAOF", "127.0.0.1", self.replica.port)
        self.primary.command("CLIENT", "UNPAUSE")
        self.primary, self.replica = self.replica, self.primary
        self.forwarder.target = ("127.0.0.1", self.primary.port)

    def _in_step(self) -> bool:
        ours, theirs = (node.admin.info("replication") for node in (self.primary, self.replica))
        return theirs.get("master_link_status") == "up" and ours["master_repl_offset"] == theirs["slave_repl_offset"]


@contextmanager
def failover_pair() -> Iterator[FailoverPair]:
    """Start both nodes and the address."""
    with redis_nodes(2) as (primary, replica):
        pair = FailoverPair(primary, replica)
        pair.replicate()
        with pair.forwarder:
            yield pair


@contextmanager
def cluster_of_two(apart: str) -> Iterator[list[Node]]:
    """A cluster of two nodes. The second has the slot of the key `apart`, the first all others."""
    with redis_nodes(2, **{"cluster-enabled": "yes", "cluster-node-timeout": "5000"}) as (first, second):
        slot = int(first.command("CLUSTER", "KEYSLOT", apart))
        first.command("CLUSTER", "ADDSLOTSRANGE", 0, slot - 1, slot + 1, 16_383)
        second.command("CLUSTER", "ADDSLOTS", slot)
        second.command("CLUSTER", "SET-CONFIG-EPOCH", 2)
        first.command("CLUSTER", "MEET", "127.0.0.1", second.port)
        for node in (first, second):
            wait_for(lambda: b"cluster_state:ok" in _cluster_info(node), message="the cluster is formed")  # noqa: B023
        yield [first, second]


def _cluster_info(node: Node) -> bytes:
    found = node.command("CLUSTER", "INFO")
    return str(found).replace("'", "").replace(": ", ":").encode() if isinstance(found, dict) else bytes(found)
