"""A chaos run of failovers: Redis behind Sentinels or as a cluster, a database with a standby, and two producers.

`make chaos FAILOVERS=1 MINUTES=10 SEED=7`; with `CLUSTER=1`, eight channels on a Redis Cluster. One machine fails at a
time, in an order that the seed gives. The next fault comes when everything has a second copy again. The simulator's
journal is the oracle, as in the other chaos runs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psycopg2

from common.channels import channel_keys, stream_keys
from common.database.client import DatabaseClient
from common.errors import TickpipeError
from common.feed_event import REPORT_TIMEOUT
from common.settings import CONSUMER_GROUP, Secret
from common.streams.client import connect
from common.streams.group import ConsumerGroup
from common.streams.lease import active_producers
from common.streams.stream import Stream
from consumer.replay import read_timeline
from tests.chaos.oracle import (
    DOUBLED,
    SYMBOLS,
    SYMBOLS_OF_CHANNELS,
    Journal,
    Judgement,
    Numbered,
    compare_with_verify,
    judge,
)
from tests.chaos.process import Process
from tests.chaos.run import keep_logs, report
from tests.support.folders import temporary_folder
from tests.support.pipeline import Database
from tests.support.redis_cluster import Member, RedisCluster, redis_cluster
from tests.support.redis_nodes import SentinelGroup, sentinel_group
from tests.support.standby import DatabasePair, database_pair
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator

#: Seconds.
LEASE = 2.0
DELAYS = (0.02, 0.2)
PAUSE = LEASE * 2
RECOVERS_WITHIN = 120.0
BAD_EVERY = 4999
BLIND = """
SELECT split_part(cause, ':', 1), count(DISTINCT since), max(extract(epoch FROM until - since))::float8
FROM feed_gaps WHERE until < 'infinity' GROUP BY 1 ORDER BY 1
"""


Wait = Callable[[Callable[[], bool], str], None]


class RedisSide(Protocol):
    """The Redis of a run, and its faults."""

    @property
    def url(self) -> str:
        """REDIS_URL."""

    @property
    def keys(self) -> Sequence[str]:
        """The streams of prices."""

    @property
    def symbols(self) -> Sequence[str]:
        """Symbols of all channels."""

    def is_in_step(self) -> bool:
        """Whether each primary has a replica that is in step."""

    def faults(self, wait: Wait, rng: random.Random) -> Mapping[str, Callable[[], None]]:
        """The faults by name."""


class BehindSentinels:
    """Two nodes and three Sentinels."""

    keys = ("prices",)
    symbols = SYMBOLS

    def __init__(self, group: SentinelGroup) -> None:
        self.url = group.url
        self._group = group

    def is_in_step(self) -> bool:
        """See RedisSide."""
        return self._group.is_in_step()

    def faults(self, wait: Wait, rng: random.Random) -> Mapping[str, Callable[[], None]]:
        """See RedisSide."""
        group = self._group

        def cut() -> None:
            group.cut_power()
            wait(group.promoted, "the replica to be promoted")
            time.sleep(rng.uniform(0.0, 2.0))
            group.restore_power()

        def pause() -> None:
            """The old primary returns, and still accepts entries until a Sentinel makes it a replica."""
            pid = group.primary.server.pid or 0
            os.kill(pid, signal.SIGSTOP)
            wait(group.promoted, "the replica to be promoted")
            time.sleep(rng.uniform(0.0, 1.0))
            os.kill(pid, signal.SIGCONT)

        def kill_sentinel() -> None:
            sentinel = rng.choice(group.sentinels)
            sentinel.kill()
            time.sleep(rng.uniform(0.5, 2.0))
            sentinel.start()

        return {
            "cut the power of Redis": cut,
            "pause the primary of Redis": pause,
            "kill a Sentinel": kill_sentinel,
            "resync the replica of Redis": group.resync,
        }


class AsCluster:
    """Three primaries and three replicas. The channels are on all of them."""

    keys = tuple(channel_keys("prices", 8))
    symbols = SYMBOLS_OF_CHANNELS

    def __init__(self, cluster: RedisCluster) -> None:
        self.url = cluster.url
        self._cluster = cluster

    def is_in_step(self) -> bool:
        """See RedisSide."""
        return self._cluster.is_in_step()

    def faults(self, wait: Wait, rng: random.Random) -> Mapping[str, Callable[[], None]]:
        """See RedisSide."""
        cluster = self._cluster

        def victim() -> tuple[int, Member]:
            slot = cluster.slot(rng.choice(self.keys))
            return slot, cluster.owner(slot)

        def cut() -> None:
            slot, member = victim()
            cluster.cut_power(member)
            wait(lambda: cluster.owner(slot) is not member, "a replica to be promoted")
            time.sleep(rng.uniform(0.0, 2.0))
            cluster.restore_power(member)

        def pause() -> None:
            slot, member = victim()
            pid = member.server.pid or 0
            os.kill(pid, signal.SIGSTOP)
            try:
                wait(lambda: cluster.owner(slot, without=member) is not member, "a replica to be promoted")
            finally:
                os.kill(pid, signal.SIGCONT)

        def target(owner: Member) -> Member:
            return rng.choice([member for member in cluster.primaries if member is not owner])

        def move_by_migrate() -> None:
            slot, owner = victim()
            cluster.move_by_migrate(slot, target(owner))

        def move_at_once() -> None:
            slot, owner = victim()
            cluster.move_at_once(slot, target(owner))

        return {
            "cut the power of a primary": cut,
            "pause a primary": pause,
            "move a slot key by key": move_by_migrate,
            "move a slot at once": move_at_once,
        }


@dataclass
class FailoverRun:
    """One run in `folder`. `say` receives lines of progress."""

    folder: Path
    redis: RedisSide
    pair: DatabasePair
    simulator: Simulator
    journal: Journal
    rng: random.Random
    say: Callable[[str], None]
    counts: Counter[str] = field(default_factory=Counter)
    kills: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        environ = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "REDIS_URL": self.redis.url,
            "DATABASE_URL": self.pair.url, "TWELVE_DATA_API_KEY": "chaos", "FEED_URL": self.simulator.url,
            "SPOOL_DIR": str(self.folder / "spool"), "CLAIM_IDLE": "3", "REDIS_REPLICAS": "1", "STANDBY": "1",
            "LEASE": str(LEASE), "SYMBOLS": ",".join(self.redis.symbols),
            "PARTITIONS": str(len(self.redis.keys)),
        }  # fmt: skip
        self.environ: Mapping[str, str] = environ
        self.producers = [Process(["producer"], environ, self.folder / f"producer-{n}.log") for n in range(2)]
        self.consumers = [Process(["consumer"], environ, self.folder / f"consumer-{n}.log") for n in range(2)]
        self.faults: dict[str, Callable[[], None]] = {
            **self.redis.faults(self._wait, self.rng),
            "fail over to a synchronous standby": self._fail_over_synchronous,
            "fail over to an asynchronous standby": self._fail_over,
            "cancel synchronous waits and fail over": self._cancel_and_fail_over,
            "kill the active producer": self._kill_producer,
            "pause the active producer": self._pause_producer,
            "stop the active producer": self._stop_producer,
            "kill a consumer": self._kill_consumer,
        }

    def execute(self, seconds: float) -> Judgement:
        """Cause faults for at least `seconds`, each kind at least once. Then store the rest and check the result."""
        try:
            self._start_all()
            self._wait(lambda: self._stored() > 0 and self._subscribed(), "the first prices")
            began = time.monotonic()
            for fault in self._schedule():
                if time.monotonic() - began > seconds and len(self.counts) == len(self.faults):
                    break
                self.say(f"{time.monotonic() - began:6.1f} s  {fault}")
                self.counts[fault] += 1
                self.faults[fault]()
                self._recover()
            self._settle()
            return self._judge()
        finally:
            for process in (*self.producers, *self.consumers):
                with suppress(subprocess.TimeoutExpired):
                    process.end(signal.SIGKILL)

    def blind(self) -> list[tuple[str, int, float]]:
        """For each cause of a gap: number, and the longest in seconds."""
        with closing(Database(self.pair.primary.url)) as database:
            return [(cause, count, seconds) for cause, count, seconds in database.query(BLIND)]

    def _schedule(self) -> Iterator[str]:
        while True:
            yield from self.rng.sample(list(self.faults), len(self.faults))

    def _start_all(self) -> None:
        for process in (*self.producers, *self.consumers):
            process.start()

    # Faults of the database.

    def _fail_over(self) -> None:
        self.pair.cut_power()
        self.pair.promote()
        time.sleep(self.rng.uniform(0.0, 1.0))
        self.pair.rebuild()

    def _fail_over_synchronous(self) -> None:
        self.pair.wait_for_standby()
        time.sleep(self.rng.uniform(0.2, 1.0))
        self._fail_over()

    def _cancel_and_fail_over(self) -> None:
        """Commits that succeed with a warning are not on the standby that is promoted then."""
        self.pair.wait_for_standby()
        self.pair.link.cut()
        with closing(Database(self.pair.primary.url)) as database:
            database.query("SET synchronous_commit = local")
            cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            for _ in range(3):
                self._wait(lambda: bool(database.query(cancel)), "a commit that waits for the standby")
        self._fail_over()

    # Faults of producers and consumers.

    def _active(self) -> tuple[Process, Process]:
        """The active producer, and the one that waits."""
        found: list[str] = []

        def found_one() -> bool:
            client = connect(Secret(self.redis.url), "prices")
            with suppress(TickpipeError):
                found.extend(active_producers(Stream(client, "prices")).values())
            client.close()
            return bool(found)

        self._wait(found_one, "a producer to be active")
        one, other = self.producers
        return (one, other) if f"-{one.pid}-" in found[0] else (other, one)

    def _kill_producer(self) -> None:
        active, _ = self._active()
        self.kills.append(time.time())
        active.end(signal.SIGKILL)

    def _pause_producer(self) -> None:
        active, _ = self._active()
        active.send(signal.SIGSTOP)
        time.sleep(PAUSE)
        active.send(signal.SIGCONT)

    def _stop_producer(self) -> None:
        active, _ = self._active()
        if status := active.end(signal.SIGTERM):
            raise AssertionError(f"the producer ended with status {status} on SIGTERM")

    def _kill_consumer(self) -> None:
        self.rng.choice(self.consumers).end(signal.SIGKILL)

    # Recovery.

    def _recover(self) -> None:
        """Wait until one more fault would lose nothing."""
        self._start_all()
        self._wait(self.redis.is_in_step, "the replica of Redis to be in step")
        sent = self._sent()
        self._wait(lambda: self._sent() > sent, "prices to be sent")
        stored = self._stored()
        self._wait(lambda: self._stored() > stored, "prices to be stored")
        self._wait(self._is_complete, "consumers to store the streams again")

    def _settle(self) -> None:
        self.say("settling: no more faults, no more prices")
        active, other = self._active()
        for producer in (other, active):
            if status := producer.end(signal.SIGTERM):
                raise AssertionError(f"a producer ended with status {status} on SIGTERM")
        self._wait(lambda: self._left() == 0, "all that was received to be stored")
        self._wait(self._is_complete, "consumers to store the streams again")
        for consumer in self.consumers:
            if status := consumer.end(signal.SIGTERM):
                raise AssertionError(f"a consumer ended with status {status} on SIGTERM")

    def _judge(self) -> Judgement:
        time.sleep(REPORT_TIMEOUT)
        judgement = judge(self.pair.primary.url, self.journal, self.kills, len(self.redis.keys))
        with closing(Database(self.pair.primary.url)) as database:
            if doubled := database.query(DOUBLED):
                judgement.faults.append(f"DOUBLED by two active producers: {doubled}")
        command = [str(Path(sys.executable).with_name("tickpipe")), "verify", "--all", "--json", "--claim-idle", "1"]
        done = subprocess.run(command, env=dict(self.environ), capture_output=True, text=True, check=False)
        judgement.faults += compare_with_verify(judgement, done.stdout)
        return judgement

    def _sent(self) -> int:
        return sum(map(len, list(self.journal.connections.values())))

    def _stored(self) -> int:
        with suppress(psycopg2.Error), closing(Database(self.pair.primary.url)) as database:
            return database.count()
        return 0

    def _subscribed(self) -> bool:
        """Whether a subscription is stored. Before the first one, a kill leaves no gap: nothing was covered yet."""
        with closing(Database(self.pair.primary.url)) as database:
            return bool(database.query("SELECT number FROM feed_events WHERE event = 'subscribed' LIMIT 1"))

    def _is_complete(self) -> bool:
        """Whether the consumers have finished the replay that the database's last failover needs."""
        url = Secret(self.pair.primary.url)
        with (
            suppress(TickpipeError),
            closing(DatabaseClient(url)) as database,
            self._streams(self.redis.keys) as streams,
        ):
            timeline = read_timeline(database)
            return all(stream.recall("database", CONSUMER_GROUP) == timeline for stream in streams)
        return False

    def _left(self) -> int:
        with suppress(TickpipeError), self._streams(stream_keys(self.redis.keys)) as streams:
            return sum(stream.backlog().left for stream in streams)
        return 1

    @contextmanager
    def _streams(self, keys: Sequence[str]) -> Iterator[list[ConsumerGroup]]:
        with ExitStack() as stack:
            clients = [stack.enter_context(closing(connect(Secret(self.redis.url), key))) for key in keys]
            yield [ConsumerGroup(client, key, CONSUMER_GROUP) for client, key in zip(clients, keys, strict=True)]

    def _wait(self, condition: Callable[[], bool], words: str) -> None:
        until = time.monotonic() + RECOVERS_WITHIN
        while not condition():
            for process in (*self.producers, *self.consumers):
                if process.status not in (None, 0, -signal.SIGKILL):
                    raise AssertionError(f"a process ended by itself, with status {process.status}: see its log")
            if time.monotonic() > until:
                raise AssertionError(f"after {RECOVERS_WITHIN:.0f} s still waiting for {words}")
            time.sleep(0.05)


def failovers(
    folder: Path, seed: int, seconds: float, rate: float, say: Callable[[str], None], *, cluster: bool
) -> tuple[Judgement, Counter[str], Sequence[tuple[str, int, float]]]:
    """Run once. Returns the judgement, the number of each fault, and for each cause of a gap number and longest."""
    rng = random.Random(seed)
    delay = rng.uniform(*DELAYS)
    journal = Journal(time.time)
    with ExitStack() as stack:
        side: RedisSide = (
            AsCluster(stack.enter_context(redis_cluster(delay)))
            if cluster
            else BehindSentinels(stack.enter_context(sentinel_group(delay, sentinels=3)))
        )
        pair = stack.enter_context(database_pair(delay))
        source = Numbered(BAD_EVERY)
        simulator = stack.enter_context(Simulator(SimulatorConfig(rate=rate), source, journal))
        say(f"{delay * 1000:.0f} ms on the links to the replicas and the standby")
        run = FailoverRun(folder, side, pair, simulator, journal, rng, say)
        return run.execute(seconds), run.counts, run.blind()


def chaos(
    seed: int, seconds: float, rate: float, say: Callable[[str], None], *, cluster: bool = False
) -> tuple[Judgement, str]:
    """Run once in a temporary folder. Keep the logs if a check fails. Returns the judgement, and a summary."""
    with temporary_folder() as folder:
        try:
            judgement, counts, blind = failovers(folder, seed, seconds, rate, say, cluster=cluster)
        except BaseException:
            keep_logs(folder, seed, say)
            raise
        if judgement.faults:
            keep_logs(folder, seed, say)
    times = ", ".join(f"{cause}: {count}, at most {longest:.1f} s" for cause, count, longest in blind) or "none"
    return judgement, f"{report(judgement, counts, seed)}\ntimes without prices by cause: {times}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--cluster", action="store_true")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(10**6)
    print(f"seed {seed} (SEED={seed} replays the order of the faults)", flush=True)
    judgement, words = chaos(
        seed, arguments.minutes * 60, arguments.rate, lambda line: print(line, flush=True), cluster=arguments.cluster
    )
    print(words)
    return 1 if judgement.faults else 0


if __name__ == "__main__":
    sys.exit(main())
