"""How the cost of an event grows with the number of channels and of symbols, and how a drain is shared by consumers.

CPU of the producer, of Redis and of one consumer for each event, while the producer is fed as fast as it reads. The CPU
time of a start is subtracted. A machine with two cores cannot show the throughput of several consumers: the drains show
that they do not slow each other down.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice

from benchmarks import ticks
from benchmarks.clients import Blaster, wait_for
from benchmarks.plan import Case, Part, Preparation, Scale
from benchmarks.report import Ratio, Sample, rate
from benchmarks.servers import DATABASE, STREAM, Bench
from common.channels import channel_keys
from common.formatting import counted

PART = "channels"
CHANNELS = (1, 2, 4, 8, 16)
SYMBOLS = (8, 500, 10_000)
#: Symbols of the cases that compare numbers of channels.
MOST = 500
#: Channels and consumers of the drains.
DRAINS = ((1, 1), (1, 2), (2, 2), (4, 1), (4, 4), (4, 8))
#: Events of the run that measures the cost of a start.
FEW = 500


def name(channels: int, symbols: int) -> str:
    """The name of a case."""
    return f"{counted(channels, 'channel')}, {symbols:,} symbols"


def drain_name(channels: int, consumers: int) -> str:
    """The name of a drain."""
    return f"drain of {counted(channels, 'channel')} by {consumers}"


BASE = name(1, MOST)
RATIOS = [
    Ratio(PART, metric, other, BASE)
    for other in (*(name(count, MOST) for count in CHANNELS[1:]), *(name(1, count) for count in SYMBOLS))
    for metric in ("cpu", "redis", "consumer")
    if other != BASE
]


def part(bench: Bench, scale: Scale, blaster: Callable[[int], Blaster]) -> Part:
    """`blaster`: the server that sends prices of this many symbols."""
    count = scale.channel_events
    idle: dict[int, tuple[float, float]] = {}  # CPU seconds of a start of producer and consumer, by channels

    def measure_idle() -> None:
        for channels in CHANNELS:
            sample = _run(bench, blaster(MOST), channels, FEW)
            idle[channels] = sample["cpu"], sample["consumer"]

    def measure(channels: int, symbols: int) -> Callable[[int], Sample]:
        def run(_round: int) -> Sample:
            sample = _run(bench, blaster(symbols), channels, count)
            producer, consumer = idle[channels]
            return {
                "cpu": (sample["cpu"] - producer) / (count - FEW) * 1e6,
                "redis": sample["redis"] / count * 1e6,
                "consumer": (sample["consumer"] - consumer) / (count - FEW) * 1e6,
            }

        return run

    def drain(channels: int, consumers: int) -> Callable[[int], Sample]:
        def run(_round: int) -> Sample:
            _produce(bench, blaster(MOST), channels, count)
            bench.empty(DATABASE)
            bench.settle(DATABASE)
            clients = [bench.consumer(DATABASE, 1000, "--drain") for _ in range(consumers)]
            used = [client.wait() for client in clients]
            return {"rate": rate(bench.commits(DATABASE)), "consumer": sum(each.cpu for each in used) / count * 1e6}

        return run

    costs = dict.fromkeys([*((channels, MOST) for channels in CHANNELS), *((1, symbols) for symbols in SYMBOLS)])
    seconds = 3 + count / 40_000
    cases = [Case(name(*each), seconds, measure(*each)) for each in costs]
    cases += [Case(drain_name(*each), seconds, drain(*each)) for each in DRAINS]
    preparations = [
        *(Preparation(f"making frames of {each:,} symbols", 4, partial(blaster, each)) for each in SYMBOLS),
        Preparation("measuring the cost of a start", 40, measure_idle),
    ]
    return Part(PART, scale.channel_rounds, preparations, cases)


def _run(bench: Bench, blaster: Blaster, channels: int, count: int) -> dict[str, float]:
    """Seconds of CPU that producer, Redis and consumer use for this many events."""
    before = _redis_seconds(bench)
    producer = _produce(bench, blaster, channels, count)
    bench.empty(DATABASE)
    consumer = bench.consumer(DATABASE, 1000, "--drain").wait().cpu
    return {"cpu": producer, "redis": _redis_seconds(bench) - before, "consumer": consumer}


def _produce(bench: Bench, blaster: Blaster, channels: int, count: int) -> float:
    """Append events to the streams of this many channels. Returns the producer's CPU seconds."""
    bench.empty_stream()
    keys = channel_keys(STREAM, channels)
    client = bench.producer(
        blaster.url(count), "--partitions", str(channels), "--queue-max", "1000000", "--append-timeout", "10"
    )
    blaster.seconds()
    found = wait_for(lambda: sum([bench.redis.xlen(key) for key in keys]), count)
    used = client.stop().cpu
    if found != count:
        raise RuntimeError(f"{found} events were appended of {count}")
    return used


def _redis_seconds(bench: Bench) -> float:
    found = bench.redis.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


def frames(bench: Bench, count: int, symbols: int) -> Blaster:
    """Start a server with this many frames of as many symbols."""
    path = bench.folder / f"frames-{symbols}"
    names = cycle(f"SYM{number}" for number in range(symbols))
    with path.open("wb") as file:
        for event, symbol in islice(zip(ticks.events(count), names, strict=False), count):
            file.write(ticks.frame(json.dumps(event | {"symbol": symbol}).encode()))
    return Blaster(path)
