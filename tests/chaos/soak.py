"""A producer against a simulator that breaks it every 20 seconds in a different way: does it come back each time?

`make soak MINUTES=30`. Prints, for each fault, how long after the server was well again prices flowed, and at the end
the worst of them, connections open at once, threads and memory.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.chaos.oracle import SYMBOLS, Numbered
from tests.support.faults import FaultySimulator
from tests.support.homes import temporary_home
from tickpipe.local.servers.valkey import ValkeyServer
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.random_walk import Event

EVERY = 20.0


class Fault(NamedTuple):
    """What begins it, how many seconds it lasts, what ends it."""

    name: str
    begin: Sequence[Callable[[], None]]
    lasts: float = 0.0
    end: Callable[[], None] = lambda: None


def faults(sim: FaultySimulator) -> list[Fault]:
    """Each way in which it is broken. A fault of new connections needs the old one gone."""
    cut = sim.reset_all
    return [
        Fault("clean close", [sim.close_all]),
        Fault("reset", [cut]),
        Fault("half-open peer", [sim.half_open_all]),
        Fault("close, internal error", [lambda: sim.close_all(1011, "internal error")]),
        Fault("hung handshakes", [lambda: sim.hang_handshakes(on=True), cut], 8, lambda: sim.hang_handshakes(on=False)),
        Fault("pings answered, nothing else", [lambda: sim.mute(on=True)], 19, lambda: sim.mute(on=False)),
        Fault("refused for a while", [lambda: sim.refuse_key(on=True), cut], 6, lambda: sim.refuse_key(on=False)),
        Fault(
            "closed right after subscribing",
            [lambda: sim.close_after_subscribe(0.2), cut],
            3,
            lambda: sim.close_after_subscribe(None),
        ),
        Fault("garbage, then a reset", [lambda: sim.send_raw("garbage"), cut]),
        Fault("a frame of 1 MB, then a close", [lambda: sim.send_raw("x" * 1_000_000), sim.close_all]),
    ]


@dataclass
class Soak:
    """What was seen: seconds until prices flowed again, threads and megabytes of the producer after each fault."""

    back: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    price_at: float = 0.0

    def journal(self, _connection: int, _event: Event) -> None:
        """See Simulator."""
        self.price_at = time.monotonic()

    def break_it(self, fault: Fault, sim: FaultySimulator, producer: psutil.Popen) -> str:
        """One fault, until it is back; what was seen."""
        time.sleep(max(0.0, EVERY - fault.lasts))
        for begin in fault.begin:
            begin()
        time.sleep(fault.lasts)
        fault.end()
        well = time.monotonic()
        while not (self.price_at > well and sim.open_connections == 1) and time.monotonic() - well < 60:
            time.sleep(0.02)
        self.back.append(time.monotonic() - well)
        self.threads.append(producer.num_threads())
        self.sizes.append(producer.memory_info().rss / 1e6)
        if self.back[-1] >= 15:
            self.wrong.append(f"{fault.name}: not back within 15 s ({self.back[-1]:.1f} s)")
        return f"{fault.name}: back after {self.back[-1]:.1f} s; {self.threads[-1]} threads, {self.sizes[-1]:.1f} MB"

    def judge(self, sim: FaultySimulator) -> str:
        """The figures in one line; what is wrong with them goes to `wrong`."""
        early = self.sizes[len(self.sizes) // 4]
        if sim.most_open > 1:
            self.wrong.append(f"{sim.most_open} connections were open at once")
        if max(self.threads) > min(self.threads):
            self.wrong.append(f"threads: {min(self.threads)} to {max(self.threads)}")
        if self.sizes[-1] > early + 5:
            self.wrong.append(f"memory grew from {early:.1f} to {self.sizes[-1]:.1f} MB")
        return (
            f"{len(self.back)} faults, {sim.connections} connections, at most {sim.most_open} at once; "
            f"back within {max(self.back):.1f} s; threads {min(self.threads)}–{max(self.threads)}; "
            f"memory {min(self.sizes):.1f}–{max(self.sizes):.1f} MB"
        )


def soak(seconds: float, say: Callable[[str], None]) -> list[str]:
    """Run it; what was not as it should be."""
    seen = Soak()
    with (
        temporary_home() as home,
        FaultySimulator(SimulatorConfig(rate=50), Numbered(10**9), seen.journal) as sim,
        (home / "producer.log").open("wb") as log,
    ):
        valkey = ValkeyServer(home / "valkey")
        valkey.start()
        environ = {
            "PATH": os.environ["PATH"], "HOME": str(home), "REDIS_URL": valkey.url, "TWELVE_DATA_API_KEY": "soak",
            "TWELVE_DATA_URL": sim.url, "SYMBOLS": ",".join(SYMBOLS), "SPOOL_DIR": str(home / "spool"),
        }  # fmt: skip
        producer = psutil.Popen([Path(sys.executable).with_name("producer")], env=environ, stdout=log, stderr=log)
        try:
            began = time.monotonic()
            for fault in itertools.cycle(faults(sim)):
                if time.monotonic() - began > seconds:
                    break
                say(f"{time.monotonic() - began:6.0f} s  {seen.break_it(fault, sim, producer)}")
            producer.send_signal(signal.SIGTERM)
            if status := producer.wait(15):
                seen.wrong.append(f"the producer ended with status {status}")
        except psutil.Error as error:
            seen.wrong.append(f"the producer is gone: {error}; {(home / 'producer.log').read_text()[-2000:]}")
        finally:
            if producer.is_running():
                producer.kill()
                producer.wait()
            valkey.stop()
        say(seen.judge(sim))
    return seen.wrong


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0)
    wrong = soak(parser.parse_args().minutes * 60, lambda words: print(words, flush=True))
    print("\n".join(wrong) or "it came back each time")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
