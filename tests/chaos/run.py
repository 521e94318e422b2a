"""A chaos run: real servers, the real producer, three consumers, a seeded schedule of faults and an oracle.

`make chaos MINUTES=10 SEED=7`, or `python -m tests.chaos.run --minutes 10 --seed 7`. For one long
outage use `--fault "kill Redis" --lasts 60`. `--fault none` only runs `tickpipe verify` repeatedly.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis

from common.database import migrations
from common.database.client import DatabaseClient
from common.errors import OutageError
from common.feed_event import REPORT_TIMEOUT
from common.settings import Secret
from producer.spool import read_spool
from tests.chaos.faults import FAULTS, Step, schedule
from tests.chaos.oracle import SYMBOLS, Journal, Judgement, Numbered, compare_with_verify, judge
from tests.chaos.process import Process
from tests.support.faults import Faults, FaultySimulator
from tests.support.folders import temporary_folder
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.valkey import ValkeyServer
from tickpipe.simulator.config import SimulatorConfig

CONSUMERS = 3
CLAIM_IDLE = 3.0
BAD_EVERY = 4999
#: Seconds to wait at the end until all entries are stored.
SETTLE_WITHIN = 120.0


@dataclass
class Run:
    """One chaos run in `folder`. `say` receives lines of progress."""

    folder: Path
    seed: int
    seconds: float
    rate: float
    say: Callable[[str], None]
    steps: Sequence[Step] | None = None  # replaces the schedule of the seed
    least: int = 0  # the run takes longer than `seconds` until the simulator has sent this many events
    counts: Counter[str] = field(default_factory=Counter)
    kills: list[float] = field(default_factory=list)
    looks: int = 0  # how often `tickpipe verify` ran during the faults
    alarms: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.valkey = ValkeyServer(self.folder / "valkey")
        self.postgres = PostgresServer(self.folder / "postgres-18")
        self.journal = Journal(time.time)
        self.simulator = self._make_simulator()
        self.rng = random.Random(self.seed)
        self.environ: dict[str, str] = {}
        self.producer: Process
        self.consumers: list[Process] = []

    def _make_simulator(self) -> Faults:
        config = SimulatorConfig(rate=self.rate)
        return FaultySimulator(config, source=Numbered(BAD_EVERY), journal=self.journal)

    def _feed_environ(self) -> dict[str, str]:
        """Variables of the feed, once the simulator runs."""
        return {"TWELVE_DATA_API_KEY": "chaos", "FEED_URL": self.simulator.url, "SYMBOLS": ",".join(SYMBOLS)}

    def execute(self) -> Judgement:
        """Start the pipeline, break and repair it, wait for the last entries and check the result."""
        self.valkey.start()
        self.postgres.start()
        self.simulator.start()
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": self.postgres.url,
            "SPOOL_DIR": str(self.folder / "spool"),
            "CLAIM_IDLE": str(CLAIM_IDLE),
            **self._feed_environ(),
        }
        self.producer = Process(["producer"], self.environ, self.folder / "producer.log")
        self.consumers = [
            Process(["consumer", "--max-batch-size", "500"], self.environ, self.folder / f"consumer-{number}.log")
            for number in range(CONSUMERS)
        ]
        with contextlib.closing(DatabaseClient(Secret(self.postgres.url))) as database:
            migrations.apply(database)  # `verify` needs the schema, and consumers may start slowly
        try:
            for process in (self.producer, *self.consumers):
                process.start()
            resting = threading.Event()
            looking = threading.Thread(target=self._look_on, args=(resting,))
            looking.start()
            try:
                self._break()
            finally:
                resting.set()
                looking.join()
            self._settle()
            return self._judge()
        finally:
            for process in (self.producer, *self.consumers):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.end(signal.SIGKILL)
            self.simulator.stop()
            self.postgres.stop()
            self.valkey.stop()

    def _look_on(self, resting: threading.Event) -> None:
        """Run `tickpipe verify` repeatedly. It must never report a false loss."""
        while not resting.wait(1.0):
            status, said, errors = self._verify(CLAIM_IDLE * 2)
            if said.startswith("["):  # otherwise Redis or the database was unavailable
                self.looks += 1
                self.alarms += [f"FALSE ALARM: {verdict}" for verdict in json.loads(said) if not verdict["sound"]]
            elif status != 1:
                self.alarms.append(f"verify ended with status {status}: {errors[-500:]}")

    def _verify(self, claim_idle: float, *options: str) -> tuple[int, str, str]:
        command = [str(Path(sys.executable).with_name("tickpipe")), "verify", "--json", "--claim-idle", str(claim_idle)]
        done = subprocess.run([*command, *options], env=self.environ, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    def _break(self) -> None:
        steps = schedule(self.seed, self.seconds) if self.steps is None else self.steps
        moments: list[tuple[float, Callable[[], None], str]] = []
        for step in steps:
            self.counts[step.fault] += 1
            begin, end = self._fault(step)
            moments.append((step.at, begin, f"{step.fault} …"))
            moments.append((step.until, end, f"… {step.fault}, over"))
        started = time.monotonic()
        for at, act, words in sorted(moments, key=lambda moment: moment[0]):
            self._sleep_until(started + at)
            self.say(f"{time.monotonic() - started:6.1f} s  {words}")
            act()
        self._sleep_until(started + self.seconds)
        self._wait(lambda: self._sent() >= self.least, f"{self.least:,} events to be sent")

    def _sent(self) -> int:
        return sum(map(len, list(self.journal.connections.values())))

    def _sleep_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            for process in (self.producer, *self.consumers):
                if process.status not in (None, 0, -signal.SIGKILL):
                    raise AssertionError(f"a process ended by itself, with status {process.status}: see its log")
            time.sleep(min(left, 0.2))

    def _fault(self, step: Step) -> tuple[Callable[[], None], Callable[[], None]]:
        """The actions that start and end a fault."""
        consumer = self.rng.choice(self.consumers)
        garbages: list[str | bytes] = ["not json", b"\x00\xff binary", "[" * 5000, '{"event": "odd"}', "x" * 1_000_000]
        garbage = self.rng.choice(garbages)
        simulator = self.simulator

        def nothing() -> None:
            pass

        return {
            "kill a consumer": (lambda: _ended(consumer, signal.SIGKILL), consumer.start),
            "pause a consumer": (lambda: consumer.send(signal.SIGSTOP), lambda: consumer.send(signal.SIGCONT)),
            "kill the producer": (self._kill_producer, self.producer.start),
            "pause the producer": (
                lambda: self.producer.send(signal.SIGSTOP),
                lambda: self.producer.send(signal.SIGCONT),
            ),
            "kill Redis": (self.valkey.kill, self.valkey.start),
            "pause Redis": (lambda: _pause(self.valkey.pid), lambda: _resume(self.valkey.pid)),
            "fill Redis": (self._fill_redis, self._empty_redis),
            "kill PostgreSQL": (self.postgres.kill, self.postgres.start),
            "stop PostgreSQL": (self.postgres.stop, self.postgres.start),
            "kill a consumer with a batch, PostgreSQL": (self.postgres.kill, lambda: self._kill_holder(consumer)),
            "close the websocket": (simulator.close_all, nothing),
            "reset the websocket": (simulator.reset_all, nothing),
            "half-open the websocket": (simulator.half_open_all, nothing),
            "hang handshakes": (self._hang_handshakes, lambda: simulator.hang_handshakes(on=False)),
            "mute the feed": (lambda: simulator.mute(on=True), lambda: simulator.mute(on=False)),
            "send garbage": (lambda: simulator.send_raw(garbage), nothing),
            "a slow second group": (self._open_second_group, self._close_second_group),
        }[step.fault]

    def _hang_handshakes(self) -> None:
        self.simulator.hang_handshakes(on=True)
        self.simulator.reset_all()

    def _kill_producer(self) -> None:
        self.kills.append(time.time())
        self.producer.end(signal.SIGKILL)

    def _kill_holder(self, consumer: Process) -> None:
        consumer.end(signal.SIGKILL)
        consumer.start()
        self.postgres.start()

    @contextlib.contextmanager
    def _redis(self) -> Iterator[redis.Redis]:
        """A Redis client for faults. An action is skipped while Redis is unavailable."""
        client = redis.Redis.from_url(self.valkey.url, socket_timeout=2)
        with contextlib.closing(client), contextlib.suppress(redis.RedisError):
            yield client

    def _fill_redis(self) -> None:
        with self._redis() as client:
            client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 500_000)

    def _empty_redis(self) -> None:
        with self._redis() as client:
            client.config_set("maxmemory", 0)

    def _open_second_group(self) -> None:
        with self._redis() as client:
            client.xgroup_create("prices", "second", id="0")
            client.xreadgroup("second", "reader", {"prices": ">"}, count=100)

    def _close_second_group(self) -> None:
        with self._redis() as client:
            client.xgroup_destroy("prices", "second")

    def _settle(self) -> None:
        """Wait without faults and prices until all entries are stored and the spool is empty."""
        self.simulator.hang_handshakes(on=False)
        self.simulator.mute(on=False)
        self.valkey.start()
        self.postgres.start()
        self._empty_redis()
        self._close_second_group()
        for process in (self.producer, *self.consumers):
            process.send(signal.SIGCONT)
            process.start()
        self.simulator.quiet(on=True)
        self.say("settling: no more faults, no more prices")
        self._wait(lambda: not self._spools(), "the spool to be empty")
        if status := self.producer.end(signal.SIGTERM):
            raise AssertionError(f"the producer ended with status {status} on SIGTERM")
        self._wait(lambda: self._left() == 0, "all that was received to be stored")
        for consumer in self.consumers:
            if status := consumer.end(signal.SIGTERM):
                raise AssertionError(f"a consumer ended with status {status} on SIGTERM")

    def _wait(self, condition: Callable[[], bool], words: str) -> None:
        until = time.monotonic() + SETTLE_WITHIN
        while not condition():
            if time.monotonic() > until:
                raise AssertionError(f"after {SETTLE_WITHIN:.0f} s still waiting for {words}")
            time.sleep(0.1)

    def _spools(self) -> list[Path]:
        return [path for path in (self.folder / "spool").rglob("*.spool") if _has_entries(path)]

    def _left(self) -> int:
        left = [1]  # if Redis does not respond
        with self._redis() as client:
            groups = [client.xinfo_groups(key)[0] for key in ("prices", "prices:feed")]
            left = [(group["lag"] or 0) + group["pending"] for group in groups]
        return sum(left)

    def _judge(self) -> Judgement:
        """Check with the oracle and with `tickpipe verify`, after killed sessions count as ended."""
        time.sleep(REPORT_TIMEOUT)
        judgement = self._compare()
        status, said, errors = self._verify(1.0, "--all")
        judgement.faults += compare_with_verify(judgement, said)
        if status:
            judgement.faults.append(f"verify ended with status {status}: {errors[-500:]}")
        judgement.faults += self.alarms
        self.counts["looks of verify meanwhile"] = self.looks
        return judgement

    def _compare(self) -> Judgement:
        """The findings of the oracle."""
        return judge(self.postgres.url, self.journal, self.kills)


def _ended(process: Process, number: signal.Signals) -> None:
    process.end(number)


def _pause(pid: int | None) -> None:
    if pid:
        os.kill(pid, signal.SIGSTOP)


def _resume(pid: int | None) -> None:
    if pid:
        os.kill(pid, signal.SIGCONT)


def _has_entries(path: Path) -> bool:
    try:
        return any(True for _ in read_spool(path))
    except OutageError:
        return False


def chaos(
    seed: int,
    seconds: float,
    rate: float,
    say: Callable[[str], None],
    steps: Sequence[Step] | None = None,
    least: int = 0,
    kind: type[Run] = Run,
) -> tuple[Judgement, Counter[str]]:
    """Run once in a temporary folder. Keep the logs if a check fails."""
    with temporary_folder() as folder:
        run = kind(folder, seed, seconds, rate, say, steps, least)
        try:
            judgement = run.execute()
        except BaseException:
            keep_logs(folder, seed, say)
            raise
        if judgement.faults:
            keep_logs(folder, seed, say)
        return judgement, run.counts


def keep_logs(folder: Path, seed: int, say: Callable[[str], None]) -> None:
    """Copy the logs of a run that has failed."""
    kept = Path("/tmp") / f"tickpipe-chaos-{seed}"
    kept.mkdir(exist_ok=True)
    for log in [*folder.glob("*.log"), *folder.glob("*/server.log")]:
        (kept / f"{log.parent.name}-{log.name}").write_bytes(log.read_bytes())
    say(f"logs kept in {kept}")


def report(judgement: Judgement, counts: Counter[str], seed: int) -> str:
    """A summary of the run."""
    costs = ", ".join(f"{cost * 1000:.0f}" for cost in sorted(judgement.kill_costs)) or "none"
    return "\n".join(
        [
            f"seed {seed}: {judgement.sent:,} events sent, {judgement.stored:,} stored",
            f"{judgement.dead_letters:,} dead letters, {judgement.in_gaps:,} in recorded gaps",
            f"faults: {', '.join(f'{count} × {fault}' for fault, count in sorted(counts.items()))}",
            f"cost of producer kills in ms: {costs}",
            *(judgement.faults or ["0 lost, 0 duplicated; verify agrees"]),
        ]
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rate", type=float, default=2500.0)
    parser.add_argument("--fault", choices=["none", *FAULTS], help="only this fault, once, instead of the schedule")
    parser.add_argument("--lasts", type=float, default=60.0, help="duration of --fault in seconds")
    arguments = parser.parse_args()
    steps: list[Step] | None = [] if arguments.fault else None
    if arguments.fault not in {None, "none"}:
        steps = [Step(5.0, 5.0 + arguments.lasts, arguments.fault)]
        arguments.minutes = max(arguments.minutes, (arguments.lasts + 10.0) / 60.0)
    seed = arguments.seed if arguments.seed is not None else random.randrange(10**6)
    print(f"seed {seed} (SEED={seed} replays the schedule)", flush=True)
    judgement, counts = chaos(seed, arguments.minutes * 60, arguments.rate, lambda line: print(line, flush=True), steps)
    print(report(judgement, counts, seed))
    return 1 if judgement.faults else 0


if __name__ == "__main__":
    sys.exit(main())
