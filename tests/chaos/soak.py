"""A producer against a simulator that causes a different fault every 20 seconds.

`make soak MINUTES=30`. Prints the recovery time after each fault. At the end it prints the
maximum of recovery time, simultaneous connections, threads and memory.
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
from tests.support.folders import temporary_folder
from tickpipe.local.servers.valkey import ValkeyServer
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.random_walk import Event

EVERY = 20.0


class Fault(NamedTuple):
    """The actions that start and end a fault, and its duration in seconds."""

    name: str
    begin: Sequence[Callable[[], None]]
    lasts: float = 0.0
    end: Callable[[], None] = lambda: None


def faults(sim: FaultySimulator) -> list[Fault]:
    """All faults. A fault of new connections must first close the current one."""
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
    """Measurements after each fault: recovery time in seconds, threads and megabytes of the producer."""

    back: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    price_at: float = 0.0

    def journal(self, _connection: int, _event: Event) -> None:
        """Record an event of the simulator."""
        self.price_at = time.monotonic()

    def break_it(self, fault: Fault, sim: FaultySimulator, producer: psutil.Popen) -> str:
        """Run one fault and measure the recovery."""
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
        """Return the figures in one line. Append each violated limit to `wrong`."""
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
    """Run all faults and return the violated limits."""
    seen = Soak()
    with (
        temporary_folder() as folder,
        FaultySimulator(SimulatorConfig(rate=50), Numbered(10**9), seen.journal) as sim,
        (folder / "producer.log").open("wb") as log,
    ):
        valkey = ValkeyServer(folder / "valkey")
        valkey.start()
        environ = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "REDIS_URL": valkey.url, "TWELVE_DATA_API_KEY": "soak",
            "FEED_URL": sim.url, "SYMBOLS": ",".join(SYMBOLS), "SPOOL_DIR": str(folder / "spool"),
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
            seen.wrong.append(f"the producer is gone: {error}; {(folder / 'producer.log').read_text()[-2000:]}")
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
