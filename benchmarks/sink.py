"""Stream → database: compares tickpipe's consumer with other software that does the same work, and with the limit.

All rates come from the database's commit times: the rows of all batches except the first, divided by the time between
the first commit and the last. The rates thus exclude the start of each client, and no client times itself. CPU is the
time of the whole process, minus that of the same process with an empty stream. For rows from memory, CPU is the time of
the inserts alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from benchmarks.clients import Client, Usage
from benchmarks.plan import Case, Part, Preparation, Scale
from benchmarks.report import Ratio, Sample, rate
from benchmarks.servers import DATABASE, STREAM, Bench, source_of

PART = "sink"
TICKPIPE, TICKPIPE_5000 = "tickpipe consumer, batches of 1000", "tickpipe consumer, batches of 5000"
REDIS_PY = "redis-py + execute_values, 1000"
FASTSTREAM = "FastStream + execute_values, 1000"
TUTORIAL = "tutorial: memory, no key, 4 columns, 100"
COPY, COPY_5000 = "COPY from memory, 1000", "COPY from memory, 5000"
INSERT_5000 = "tickpipe insert alone, from memory, 5000"
#: Cases that do not read a stream.
FROM_MEMORY = (TUTORIAL, COPY, COPY_5000, INSERT_5000)

RATIOS = [
    *(Ratio(PART, "rate", TICKPIPE, other) for other in (REDIS_PY, FASTSTREAM, TUTORIAL, COPY)),
    Ratio(PART, "rate", TICKPIPE_5000, TUTORIAL),
    Ratio(PART, "rate", TICKPIPE_5000, COPY_5000),
    Ratio(PART, "rate", INSERT_5000, COPY_5000),
    *(Ratio(PART, "cpu", TICKPIPE, other) for other in (REDIS_PY, FASTSTREAM, TUTORIAL)),
    Ratio(PART, "cpu", INSERT_5000, COPY_5000),
    *(Ratio(PART, "peak", TICKPIPE, other) for other in (REDIS_PY, FASTSTREAM)),
]


def part(bench: Bench, scale: Scale) -> Part:
    """All cases, each with an empty table."""
    count, source = scale.events, source_of(scale.events)
    drains: list[tuple[str, Callable[[int], Client]]] = [
        (TICKPIPE, lambda _: bench.consumer(DATABASE, 1000, "--drain")),
        (REDIS_PY, lambda _: bench.peer("redis_py", DATABASE, STREAM, 1000)),
        (FASTSTREAM, lambda events: bench.peer("faststream_batch", DATABASE, STREAM, 1000, events)),
        (TICKPIPE_5000, lambda _: bench.consumer(DATABASE, 5000, "--drain")),
    ]
    idle: dict[str, float] = {}  # CPU seconds of a drain of an empty stream

    def measure_idle() -> None:
        for name, start in drains:
            bench.empty_stream()
            idle[name] = start(0).wait().cpu

    def drain(name: str, start: Callable[[int], Client]) -> Callable[[int], Sample]:
        def run(_round: int) -> Sample:
            bench.fill_stream(count)
            usage, rows = _measured(bench, count, lambda: start(count))
            return {"rate": rows, "cpu": (usage.cpu - idle[name]) / count * 1e6, "peak": usage.peak / 2**20}

        return run

    def from_memory(table: str, start: Callable[[], Client]) -> Callable[[int], Sample]:
        def run(_round: int) -> Sample:
            usage, rows = _measured(bench, count, start, table)
            return {"rate": rows, "cpu": json.loads(usage.output)["cpu"] / count * 1e6}

        return run

    def peer(name: str, *arguments: object) -> Callable[[], Client]:
        return lambda: bench.peer(name, DATABASE, source, *arguments)

    cases = [Case(name, 3 + count / 20_000, drain(name, start)) for name, start in drains]
    prices = "prices_real_time"
    cases += [
        Case(TUTORIAL, 5 + count / 40_000, from_memory("tutorial", peer("tutorial", count))),
        Case(COPY, 5 + count / 70_000, from_memory(prices, peer("copy_rows", 1000, count))),
        Case(INSERT_5000, 5 + count / 60_000, from_memory(prices, peer("insert_batch", 5000, count))),
        Case(COPY_5000, 5 + count / 80_000, from_memory(prices, peer("copy_rows", 5000, count))),
    ]
    preparations = [
        Preparation("loading the stream", count / 40_000, lambda: bench.fill_stream(count)),
        Preparation("measuring the cost of a start", 4, measure_idle),
    ]
    return Part(PART, scale.rounds, preparations, cases)


def _measured(
    bench: Bench, count: int, start: Callable[[], Client], table: str = "prices_real_time"
) -> tuple[Usage, float]:
    """Resources and committed rows per second. Raises RuntimeError if rows are missing."""
    bench.empty(DATABASE)
    bench.settle(DATABASE)
    usage = start().wait()
    commits = bench.commits(DATABASE, table=table)
    if (rows := sum(commit.rows for commit in commits)) != count:
        raise RuntimeError(f"{rows} rows are stored of {count}: {usage.output[-1000:]}")
    return usage, rate(commits)
