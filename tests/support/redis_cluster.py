"""A Redis Cluster of three primaries, each with a replica behind a delayed link."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import cast

import redis

from tests.support.delayed_link import DelayedLink
from tests.support.folders import temporary_folder
from tests.support.ports import free_port
from tests.support.redis_nodes import SLOTS, Node, cluster_info
from tests.support.waiting import wait_for
from tickpipe.local.servers.valkey import ValkeyServer

#: Primaries at the start.
SHARDS = 3


class Member(Node):
    """A node of the cluster. Clients and other nodes reach it by its link only."""

    def __init__(self, server: ValkeyServer, port: int, link: DelayedLink) -> None:
        super().__init__(server, port)
        self.link = link

    @property
    def id(self) -> str:
        """Its name in the cluster."""
        return cast("bytes", self.command("CLUSTER", "MYID")).decode()

    def is_primary(self) -> bool:
        """Whether it is one; False if it does not answer."""
        with suppress(redis.RedisError):
            return bool(self.admin.info("replication")["role"] == "master")
        return False

    def follows(self) -> bool:
        """Whether it is a replica that streams from its primary."""
        with suppress(redis.RedisError):
            state = self.admin.info("replication")
            return (
                state["role"] == "slave"
                and state["master_link_status"] == "up"
                and not state["master_sync_in_progress"]
            )
        return False


class RedisCluster:
    """The nodes. The first three are the primaries at the start."""

    def __init__(self, members: Sequence[Member], add: Callable[[], Member]) -> None:
        self.members = list(members)
        self._add = add

    @property
    def url(self) -> str:
        """The URL for the products' settings."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{member.link.port}" for member in self.members)

    @property
    def primaries(self) -> list[Member]:
        """The primaries that answer."""
        return [member for member in self.members if member.is_primary()]

    def slot(self, key: str) -> int:
        """The slot of a key."""
        return int(self._any().command("CLUSTER", "KEYSLOT", key))

    def owner(self, slot: int, without: Member | None = None) -> Member:
        """The primary that has the slot, as a primary that answers knows it. `without`: do not ask this one."""
        for first, last, primary, *_ in self._any(without).command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(member for member in self.members if member.link.port == int(primary[1]))
        raise LookupError(f"no node has the slot {slot}")

    def form(self) -> None:
        """Assign the slots, let the nodes meet, and attach the replicas."""
        bounds = [SLOTS * number // SHARDS for number in range(SHARDS + 1)]
        for number, member in enumerate(self.members):
            member.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < SHARDS:
                member.command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        for member in self.members[1:]:
            self.introduce(member)
        for number, member in enumerate(self.members[SHARDS:]):
            attach(member, self.members[number])
        wait_for(self.is_in_step, message="the cluster is formed")

    def introduce(self, member: Member) -> None:
        """Let a node meet the first one."""
        first = self.members[0]
        member.command("CLUSTER", "MEET", "127.0.0.1", first.link.port, int(first.server.settings["cluster-port"]))

    def is_in_step(self) -> bool:
        """Whether every node answers, knows all others, and each replica streams from its primary."""
        with suppress(redis.RedisError):
            states = [member.admin.info("replication")["role"] for member in self.members]
            known = all(
                b"cluster_state:ok" in cluster_info(member)
                and f"cluster_known_nodes:{len(self.members)}".encode() in cluster_info(member)
                for member in self.members
            )
            replicas = [member for member, role in zip(self.members, states, strict=True) if role == "slave"]
            return known and len(replicas) >= SHARDS and all(member.follows() for member in replicas)
        return False

    def cut_power(self, member: Member) -> None:
        """End a node together with the bytes that are on the way from it."""
        member.link.cut()
        member.server.kill()

    def restore_power(self, member: Member) -> None:
        """Start the node again."""
        member.link.connect()
        member.server.start()

    def add(self) -> Member:
        """Start one more primary, without slots."""
        member = self._add()
        member.command("CLUSTER", "SET-CONFIG-EPOCH", 100 + len(self.members))
        self.introduce(member)
        self.members.append(member)
        wait_for(self.is_in_step, message="the new node is known")
        return member

    def move_by_migrate(self, slot: int, target: Member) -> None:
        """Move a slot key by key, as `redis-cli --cluster reshard` does."""
        source = self.owner(slot)
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command("MIGRATE", "127.0.0.1", target.link.port, "", 0, 10_000, "KEYS", *keys)
        for member in (target, source, *self.primaries):
            member.command("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def move_at_once(self, slot: int, target: Member) -> None:
        """Move a slot by the atomic migration of Valkey 9."""
        source = self.owner(slot)
        source.command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.id)
        wait_for(lambda: self.owner(slot) is target, message=f"slot {slot} is moved")

    def _any(self, without: Member | None = None) -> Member:
        return next(member for member in self.members if member is not without and member.is_primary())


def attach(replica: Member, primary: Member) -> None:
    """Make a node a replica of a primary, as soon as they know each other."""

    def attached() -> bool:
        with suppress(redis.ResponseError):  # the replica does not know the primary yet
            replica.command("CLUSTER", "REPLICATE", primary.id)
        return replica.follows()

    wait_for(attached, message="the replica is in step")


@contextmanager
def redis_cluster(delay: float = 0.0) -> Iterator[RedisCluster]:
    """Start the nodes. `delay`: seconds on the links to the replicas."""
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())

        def start() -> Member:
            port = free_port()
            link = stack.enter_context(DelayedLink(("127.0.0.1", port), delay, b"PSYNC"))
            settings = {
                "port": str(port),
                "cluster-enabled": "yes",
                "cluster-node-timeout": "1500",
                "cluster-announce-port": str(link.port),
                "cluster-port": str(free_port()),
                "repl-diskless-sync-delay": "0",
                "repl-timeout": "10",
            }
            server = ValkeyServer(Path(folder) / f"node-{port}", settings=settings)
            stack.callback(server.stop)
            server.start()
            member = Member(server, port, link)
            stack.callback(member.admin.close)
            return member

        cluster = RedisCluster([start() for _ in range(2 * SHARDS)], start)
        cluster.form()
        yield cluster
