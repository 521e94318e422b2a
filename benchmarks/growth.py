"""Measures the rate of a drain as the table, the backlog, the batches or the number of consumers grow.

In a filled table, new rows continue after the last rows. They go to the right edge of each symbol in the key's index,
as the rows of a live feed do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks import ticks
from benchmarks.plan import Case, Part, Preparation, Scale
from benchmarks.report import Ratio, Sample, rate, swing
from benchmarks.servers import DATABASE, STREAM, Bench

PART, BACKLOG = "growth", "backlog"


def size_name(rows: int) -> str:
    """Name of the case that drains into a table with `rows` rows."""
    return f"table of {rows / 1e6:g} million rows" if rows else "table empty, batches of 1000, 1 consumer"


def ratios(scale: Scale) -> list[Ratio]:
    """Ratios to the baseline: empty table, batches of 1000, one consumer. Each case changes one of these."""
    others = [*map(size_name, scale.sizes), "batches of 100", "batches of 5000", "2 consumers", "4 consumers"]
    return [Ratio(PART, "rate", other, size_name(0)) for other in others]


def part(bench: Bench, scale: Scale) -> Part:
    """Drains. Each differs from the first in one parameter."""
    count = scale.events

    def drain(batch: int = 1000, consumers: int = 1) -> Callable[[int], Sample]:
        def run(_round: int) -> Sample:
            bench.fill_stream(count)
            bench.empty(DATABASE)
            return _drained(bench, DATABASE, count, batch=batch, consumers=consumers)

        return run

    def into(rows: int) -> Callable[[int], Sample]:
        def run(number: int) -> Sample:
            bench.fill_stream(count, number * count)
            return _drained(bench, _database(rows), count, number * count)

        return run

    seconds = 4 + count / 25_000
    first = Case(size_name(0), seconds, drain())
    cases = [
        *(Case(size_name(rows), seconds + rows / 4e6, into(rows)) for rows in scale.sizes),
        Case("batches of 100", 2 * seconds, drain(batch=100)),
        Case("batches of 5000", seconds, drain(batch=5000)),
        Case("2 consumers", seconds, drain(consumers=2)),
        Case("4 consumers", seconds, drain(consumers=4)),
    ]
    preparations = [
        Preparation(f"a table of {rows:,} rows", 2 + rows / 100_000, partial(_fill, bench, rows))
        for rows in scale.sizes
    ]
    return Part(PART, scale.growth_rounds, preparations, [first, *cases])


def backlog_part(bench: Bench, scale: Scale) -> Part:
    """The memory of one consumer while a large backlog drains."""

    def load() -> None:
        bench.empty_stream()
        ticks.load(bench.redis, STREAM, scale.backlog)

    def drain(_round: int) -> Sample:
        bench.empty(DATABASE)
        bench.settle(DATABASE)
        usage = bench.consumer(DATABASE, 1000, "--drain").wait()
        return {
            "rate": rate(bench.commits(DATABASE)),
            "peak": usage.peak / 2**20,
            "swing": swing(usage.memory) / 2**20,
        }

    count = scale.backlog
    case = Case(f"{count:,} entries, batches of 1000, 1 consumer", 2 + count / 25_000, drain)
    return Part(BACKLOG, 1, [Preparation(f"loading {count:,} entries", count / 50_000, load)], [case])


def _drained(
    bench: Bench, database: str, count: int, first: int = 0, *, batch: int = 1000, consumers: int = 1
) -> Sample:
    bench.settle(database)
    clients = [bench.consumer(database, batch, "--drain") for _ in range(consumers)]
    used = [client.wait() for client in clients]
    ours = f"session = {ticks.SESSION} AND seq > {first} AND seq <= {first + count}"
    commits = bench.commits(database, ours)
    if (rows := sum(commit.rows for commit in commits)) != count:
        raise RuntimeError(f"{rows} rows are stored of {count}: {used[0].output[-1000:]}")
    return {"rate": rate(commits)}


def _database(rows: int) -> str:
    return f"{DATABASE}_{rows}"


def _fill(bench: Bench, rows: int) -> None:
    bench.create_database(_database(rows))
    ticks.fill(bench.connection(_database(rows)), rows)
