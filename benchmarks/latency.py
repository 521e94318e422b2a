"""End-to-end latency at several rates, from `received`, the producer's timestamp at the websocket, to the commit.

The database records the commit time when it writes the commit record, just before the flush to disk. The mean duration
of the run's flushes is therefore added to each row's latency.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.clients import Blaster, wait_for
from benchmarks.plan import Case, Part, Preparation, Scale
from benchmarks.report import Sample, percentile
from benchmarks.servers import DATABASE, Bench

PART = "latency"
#: Seconds after the first price that are excluded.
WARM_UP = 2

LATENCIES = """
SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - received_at)::float8 * 1000
FROM prices_real_time
WHERE received_at >= (SELECT min(received_at) FROM prices_real_time) + %s * interval '1 second'
"""
FLUSHES = """
SELECT coalesce(sum(fsyncs), 0)::float8, coalesce(sum(fsync_time), 0)::float8
FROM pg_stat_io WHERE object = 'wal' AND backend_type = 'client backend'
"""


def part(bench: Bench, scale: Scale, blaster: Callable[[], Blaster]) -> Part:
    """A real producer and consumer at each rate."""

    def at(pace: int) -> Callable[[int], Sample]:
        def run(_round: int) -> Sample:
            count = pace * scale.pace_seconds
            bench.empty_stream()
            bench.empty(DATABASE)
            bench.settle(DATABASE)
            before = _flushes(bench)
            consumer = bench.consumer(DATABASE)
            producer = bench.producer(blaster().url(count, pace))
            blaster().seconds()
            if (rows := wait_for(lambda: _rows(bench), count)) != count:
                raise RuntimeError(f"{rows} rows are stored of {count}")
            producer.stop()
            consumer.stop()
            flushes, milliseconds = (after - earlier for after, earlier in zip(_flushes(bench), before, strict=True))
            flush = milliseconds / flushes if flushes else 0.0
            found = [float(latency) + flush for (latency,) in bench.query(DATABASE, LATENCIES, WARM_UP)]
            return {**{f"p{percent}": percentile(found, percent) for percent in (50, 95, 99)}, "flush": flush}

        return run

    cases = [Case(f"{pace:,} events/s", 4 + scale.pace_seconds, at(pace)) for pace in scale.paces]
    return Part(PART, scale.pace_rounds, [Preparation("making frames", 2, blaster)], cases)


def _flushes(bench: Bench) -> tuple[float, float]:
    """Number of WAL flushes and their total milliseconds. Zeros for versions before PostgreSQL 18."""
    if int(bench.query(DATABASE, "SHOW server_version_num")[0][0]) < 180_000:
        return 0.0, 0.0
    ((count, milliseconds),) = bench.query(DATABASE, FLUSHES)
    return float(count), float(milliseconds)


def _rows(bench: Bench) -> int:
    return int(bench.query(DATABASE, "SELECT count(*) FROM prices_real_time")[0][0])
