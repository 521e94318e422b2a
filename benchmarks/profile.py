"""Profiles a drain and a feed: `python -m benchmarks.profile`.

For both, it prints the CPU time of each process per event, Redis's time by command, the database's time by statement
(pg_stat_statements), and Python's hot spots (py-spy, 500 samples per second, only threads that hold the GIL).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg2

from benchmarks.clients import Client, Usage, wait_for
from benchmarks.feed import write_frames
from benchmarks.plan import Scale
from benchmarks.servers import DATABASE, STREAM, Bench, bench
from tests.support.folders import temporary_folder

EVENTS = 200_000
#: Lines of each list.
MAX_LINES = 12


def main() -> None:
    """Profile the drain of a stream, then a feed at full speed."""
    with temporary_folder() as folder, bench(folder, shared_preload_libraries="pg_stat_statements") as found:
        found.query(DATABASE, "CREATE EXTENSION pg_stat_statements")
        found.fill_stream(EVENTS)
        with accounts(found, "stream → database, batches of 1000"):
            watched(found.consumer(DATABASE, 1000, "--drain"), folder, Client.wait)
        found.empty_stream()
        blaster = write_frames(found, Scale(feed_events=EVENTS))
        try:
            with accounts(found, "websocket → stream"):
                watched(found.producer(blaster.url(EVENTS)), folder, lambda producer: _stop_when_done(found, producer))
        finally:
            blaster.stop()


def _stop_when_done(found: Bench, producer: Client) -> Usage:
    wait_for(lambda: found.redis.xlen(STREAM), EVENTS)
    return producer.stop()


def watched(client: Client, folder: Path, end: Callable[[Client], Usage]) -> None:
    """Wait for a client, and print its CPU time and Python's hot spots."""
    seen = folder / "seen.txt"
    options = ["record", "--gil", "--format", "raw", "--rate", "500", "--output", str(seen), "--pid", str(client.pid)]
    spy = subprocess.Popen(["py-spy", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    usage = end(client)
    spy.wait()
    print(f"  {usage.cpu / EVENTS * 1e6:7.2f} µs/event  the client, including its start; Python's hot spots:")
    for share, place in tops(seen.read_text(encoding="utf-8")):
        print(f"           {share:5.1%}  {place}")


def tops(folded: str) -> Iterator[tuple[float, str]]:
    """(share, place) of the innermost frames of py-spy's folded stacks, most frequent first."""
    places: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, samples = line.rpartition(" ")
        places[stack.rpartition(";")[2]] += int(samples)
    for place, count in places.most_common(MAX_LINES):
        yield count / places.total(), place


@contextmanager
def accounts(found: Bench, title: str) -> Iterator[None]:
    """Print the servers' CPU time and their slowest commands and statements in the `with` block."""
    found.redis.config_resetstat()
    found.query(DATABASE, "SELECT pg_stat_statements_reset()")
    before = {name: cpu(process) for name, process in processes()}
    print(f"\n{title}: {EVENTS:,} events")
    yield
    for name, process in processes():
        print(f"  {(cpu(process) - before.get(name, 0.0)) / EVENTS * 1e6:7.2f} µs/event  {name}")
    stats: dict[str, Any] = found.redis.info("commandstats")
    for name, one in sorted(stats.items(), key=lambda item: -item[1]["usec"])[:5]:
        print(
            f"           {one['usec'] / EVENTS:5.2f} µs/event  {name.removeprefix('cmdstat_')}, {one['calls']:,} calls"
        )
    for text, calls, milliseconds in found.query(
        DATABASE, "SELECT query, calls, total_exec_time FROM pg_stat_statements ORDER BY 3 DESC LIMIT 3"
    ):
        print(
            f"           {milliseconds / EVENTS * 1e3:5.2f} µs/event  {' '.join(text.split())[:60]} …, {calls:,} calls"
        )


def processes() -> Iterator[tuple[str, psutil.Process]]:
    """The servers of this run: Valkey and PostgreSQL."""
    for child in psutil.Process().children():
        if "valkey" in child.name():
            yield "Valkey", child
        if "postgres" in child.name():
            yield "PostgreSQL", child


def cpu(process: psutil.Process) -> float:
    """CPU seconds of a process and its children, including ended ones."""
    with process.oneshot():
        own = process.cpu_times()
    living = sum(sum(child.cpu_times()[:2]) for child in process.children(recursive=True))
    return float(own.user + own.system + own.children_user + own.children_system + living)


if __name__ == "__main__":
    if shutil.which("py-spy") is None:
        sys.exit("py-spy is not installed: run `make bench` once to install it")
    try:
        main()
    except psycopg2.Error as error:
        sys.exit(f"the database: {error}")
