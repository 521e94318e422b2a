"""Websocket → stream: compares tickpipe's producer with clients that only receive, on one faster server.

The server times the receiving clients from its first frame to the pong behind the last one. The producer's time is
stricter: from the first price received to the last price in Redis, and no price may be missing. CPU is the time of the
whole process, minus that of the same process with FEW prices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from benchmarks import ticks
from benchmarks.clients import Blaster, Client, wait_for
from benchmarks.plan import Case, Part, Preparation, Scale
from benchmarks.report import Ratio, Sample
from benchmarks.servers import DATABASE, STREAM, Bench

PART = "feed"
TICKPIPE = "tickpipe producer, appended to the stream"
WRAPPER = "vendor's wrapper, callback empty"
WEBSOCKET_CLIENT = "websocket-client alone, callback empty"
UNCHECKED = "websocket-client alone, UTF-8 unchecked"
#: Prices in the run that measures the cost of a start.
FEW = 100

RATIOS = [
    Ratio(PART, metric, TICKPIPE, other)
    for metric in ("rate", "cpu")
    for other in (WRAPPER, WEBSOCKET_CLIENT, UNCHECKED)
]


def part(bench: Bench, scale: Scale, blaster: Callable[[], Blaster]) -> Part:
    """All cases, with the same frames."""
    count = scale.feed_events
    starts: dict[str, Callable[[str], Client]] = {
        TICKPIPE: bench.producer,
        WRAPPER: lambda url: bench.peer("wrapper", DATABASE, url),
        WEBSOCKET_CLIENT: lambda url: bench.peer("websocket_client", DATABASE, url),
        UNCHECKED: lambda url: bench.peer("websocket_client", DATABASE, url, "unchecked"),
    }
    idle: dict[str, float] = {}  # CPU seconds of a run with FEW prices

    def measure_idle() -> None:
        for name, start in starts.items():
            bench.empty_stream()
            client = start(blaster().url(FEW))
            blaster().seconds()
            idle[name] = client.stop().cpu

    def measure(name: str, start: Callable[[str], Client]) -> Callable[[int], Sample]:
        def run(_round: int) -> Sample:
            bench.empty_stream()
            client = start(blaster().url(count))
            seconds = blaster().seconds()
            sample: dict[str, float] = {"rate": count / seconds}
            if name == TICKPIPE:
                sample = _appended(bench, count)
            usage = client.stop()
            cpu = (usage.cpu - idle[name]) / (count - FEW) * 1e6
            return {**sample, "cpu": cpu, "peak": usage.peak / 2**20}

        return run

    preparations = [
        Preparation("making frames", 1 + count / 200_000, blaster),
        Preparation("measuring the cost of a start", 4, measure_idle),
    ]
    return Part(
        PART,
        scale.feed_rounds,
        preparations,
        [Case(name, 2 + count / 10_000, measure(name, start)) for name, start in starts.items()],
    )


def _appended(bench: Bench, count: int) -> dict[str, float]:
    """Rate of the entries in Redis, and the number of missing ones, once no more arrive."""
    length = wait_for(lambda: bench.redis.xlen(STREAM), count)
    ((_, first),) = cast("Any", bench.redis.xrange(STREAM, count=1))
    ((last, _),) = cast("Any", bench.redis.xrevrange(STREAM, count=1))
    seconds = int(last.partition(b"-")[0]) / 1e3 - int(first[b"received"]) / 1e6
    return {"rate": length / seconds, "dropped": count - length}


def write_frames(bench: Bench, scale: Scale) -> Blaster:
    """Start a server with as many frames as the largest part needs."""
    most = max(scale.feed_events, max(scale.paces) * scale.pace_seconds)
    path = bench.folder / "frames"
    with path.open("wb") as file:
        file.writelines(ticks.frames(most))
    return Blaster(path)
