"""Several Redis nodes: a primary and a replica behind one address or behind Sentinels, and a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from tests.support.delayed_link import DelayedLink
from tests.support.folders import temporary_folder
from tests.support.ports import free_port
from tests.support.tls import Forwarder
from tests.support.waiting import wait_for
from tickpipe.local.servers.valkey import ValkeyServer

#: Slots of a Redis Cluster.
SLOTS = 16_384
#: The name of the service that the Sentinels watch.
SERVICE = "ticks"


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
                # The default, the port plus 10,000, may be the port of an outgoing connection.
                bus = {"cluster-port": str(free_port())} if "cluster-enabled" in settings else {}
                server = ValkeyServer(folder / f"node-{number}", settings={"port": str(port), **bus, **settings})
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
        return in_step(self.primary, self.replica)


def in_step(primary: Node, replica: Node) -> bool:
    """Whether the replica has all that the primary has."""
    ours, theirs = (node.admin.info("replication") for node in (primary, replica))
    return theirs.get("master_link_status") == "up" and ours["master_repl_offset"] == theirs["slave_repl_offset"]


@contextmanager
def failover_pair() -> Iterator[FailoverPair]:
    """Start both nodes and the address."""
    with redis_nodes(2) as (primary, replica):
        pair = FailoverPair(primary, replica)
        pair.replicate()
        with pair.forwarder:
            yield pair


class SentinelServer(ValkeyServer):
    """A Sentinel that watches one primary."""

    def __init__(self, folder: Path, port: int, watched: int, quorum: int) -> None:
        """`watched`: the port of the primary."""
        super().__init__(folder, settings={"port": str(port)})
        self.port = port
        self._lines = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {watched} {quorum}",
            f"sentinel down-after-milliseconds {SERVICE} 1000",
            f"sentinel failover-timeout {SERVICE} 5000",
        )

    def _arguments(self) -> list[str]:
        file = self._data / "sentinel.conf"
        if not file.exists():
            file.write_text("\n".join(self._lines) + "\n")
            file.chmod(0o666)  # Sentinel writes its state into it, as another user if we are root
        settings = {"port": str(self.port), "unixsocket": f"{self._socket_folder}/valkey.sock", "dir": str(self._data)}
        return [str(file), "--sentinel", *(word for name, value in settings.items() for word in (f"--{name}", value))]


class SentinelGroup:
    """Two nodes, each behind a link that delays what its replica gets, and Sentinels, which know the links only."""

    def __init__(
        self, nodes: Sequence[Node], links: Sequence[DelayedLink], sentinels: Sequence[SentinelServer]
    ) -> None:
        """The first node is the primary."""
        self.nodes = nodes
        self.sentinels = sentinels
        self._links = links
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        self.url = f"redis+sentinel://{hosts}/{SERVICE}/0"
        self._primary = 0

    @property
    def primary(self) -> Node:
        """The node that was the primary when the group was last in step."""
        return self.nodes[self._primary]

    @property
    def replica(self) -> Node:
        """The other node."""
        return self.nodes[1 - self._primary]

    def is_in_step(self) -> bool:
        """Whether one node streams from the other, and every Sentinel knows both. Notes which is the primary."""
        with suppress(redis.RedisError):
            states = [node.admin.info("replication") for node in self.nodes]
            if sorted(state["role"] for state in states) != ["master", "slave"]:
                return False
            self._primary = 0 if states[0]["role"] == "master" else 1
            link = states[1 - self._primary]
            streams = link["master_link_status"] == "up" and not link["master_sync_in_progress"]
            return streams and all(map(self._knows, self.sentinels))
        return False

    def _knows(self, sentinel: SentinelServer) -> bool:
        with closing(redis.Redis(port=sentinel.port, protocol=2)) as client:
            state: Any = client.sentinel_master(SERVICE)
        found: tuple[int, int, int] = state["port"], state["num-slaves"], state["num-other-sentinels"]
        return found == (self._links[self._primary].port, 1, len(self.sentinels) - 1)

    def follow(self) -> None:
        """Make the replica follow the primary by its link."""
        self.replica.command("REPLICAOF", "127.0.0.1", self._links[self._primary].port)

    def cut_power(self) -> None:
        """End the primary together with the bytes that are on the way to the replica."""
        self._links[self._primary].cut()
        self.primary.server.kill()

    def restore_power(self) -> None:
        """Start the old primary again, as a replica of the new one."""
        old = self._primary
        self.nodes[old].server.start()
        self._primary = 1 - old
        self.follow()
        self._links[old].connect()

    def resync(self) -> None:
        """Start the replica without data, so that it has to copy everything."""
        self.replica.server.kill()
        for file in sorted((self.replica.server.folder / "data").rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        self.replica.server.start()
        self.follow()

    def promoted(self) -> bool:
        """Whether the replica is the primary now. A Sentinel closes its connections when it promotes it."""
        with suppress(redis.RedisError):
            role: str = self.replica.admin.info("replication")["role"]
            return role == "master"
        return False


@contextmanager
def sentinel_group(delay: float = 0.0, sentinels: int = 1) -> Iterator[SentinelGroup]:
    """Start everything. `delay`: seconds on the links to a replica."""
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        nodes, links, watchers = [], [], []
        for number in range(2):
            port = free_port()
            links.append(stack.enter_context(DelayedLink(("127.0.0.1", port), delay, b"PSYNC")))
            settings = {
                "port": str(port),
                "replica-announce-ip": "127.0.0.1",
                "replica-announce-port": str(links[-1].port),
                "repl-diskless-sync-delay": "0",
                "repl-timeout": "10",
            }
            server = ValkeyServer(folder / f"node-{number}", settings=settings)
            stack.callback(server.stop)
            server.start()
            nodes.append(Node(server, port))
            stack.callback(nodes[-1].admin.close)
        for number in range(sentinels):
            watcher = SentinelServer(folder / f"sentinel-{number}", free_port(), links[0].port, sentinels // 2 + 1)
            stack.callback(watcher.stop)
            watcher.start()
            watchers.append(watcher)
        group = SentinelGroup(nodes, links, watchers)
        group.follow()
        wait_for(group.is_in_step, message="the replica is in step and known to the Sentinels")
        yield group


@contextmanager
def cluster_of_two(apart: str) -> Iterator[list[Node]]:
    """A cluster of two nodes. The second has the slot of the key `apart`, the first all others."""
    with redis_nodes(2, **{"cluster-enabled": "yes", "cluster-node-timeout": "5000"}) as (first, second):
        slot = int(first.command("CLUSTER", "KEYSLOT", apart))
        first.command("CLUSTER", "ADDSLOTSRANGE", 0, slot - 1, slot + 1, 16_383)
        second.command("CLUSTER", "ADDSLOTS", slot)
        second.command("CLUSTER", "SET-CONFIG-EPOCH", 2)
        first.command("CLUSTER", "MEET", "127.0.0.1", second.port, second.server.settings["cluster-port"])
        for node in (first, second):
            wait_for(lambda: b"cluster_state:ok" in cluster_info(node), message="the cluster is formed")  # noqa: B023
        yield [first, second]


def cluster_info(node: Node) -> bytes:
    """The reply to CLUSTER INFO, whatever form the client gives it."""
    found = node.command("CLUSTER", "INFO")
    return str(found).replace("'", "").replace(": ", ":").encode() if isinstance(found, dict) else bytes(found)
