"""Appends to Redis: plain, and with a replica that confirms each batch on its disk (REDIS_REPLICAS=1).

Primary and replica are on this machine, each with `appendfsync always`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice

from benchmarks import ticks
from benchmarks.plan import Case, Part, Preparation, Scale
from benchmarks.report import Ratio, Sample, percentile
from common.settings import Secret
from common.streams.client import connect
from common.streams.stream import Confirmation, Fields, Stream
from producer.streams import Streams
from tests.support.redis_nodes import FailoverPair

PART = "append"
SIZES = (1, 100, 1000)
_PLAIN, _CONFIRMED = "plain, batches of {}", "1 replica confirms, batches of {}"
RATIOS = [
    Ratio(PART, metric, _CONFIRMED.format(size), _PLAIN.format(size)) for size in SIZES for metric in ("rate", "p50")
]


def part(scale: Scale, nodes: Callable[[], FailoverPair]) -> Part:
    """Batches of each size, on a primary with one replica."""

    @cache
    def entries() -> Sequence[Fields]:
        return list(ticks.entries(scale.appends * max(SIZES)))

    def case(name: str, size: int, confirm: Confirmation | None) -> Case:
        def run(_round: int) -> Sample:
            nodes().primary.admin.flushall()
            stream = Stream(connect(Secret(nodes().primary.server.url), "prices"), "prices")
            streams = Streams(stream, stream, confirm=confirm)
            left, batches = iter(entries()), min(scale.appends, 20_000 // size)
            seconds, previous = [], None
            for _ in range(batches):
                batch = list(islice(left, size))
                begun = time.perf_counter()
                if not streams.append("prices", batch, after=previous):
                    raise RuntimeError("the replica did not confirm in time")
                seconds.append(time.perf_counter() - begun)
                previous = batch[-1]
            stream.client.close()
            return {"rate": batches * size / sum(seconds), "p50": percentile(seconds, 50) * 1000}

        return Case(name.format(size), 2, run)

    confirmation = Confirmation(1, 5.0)
    cases = [
        case(*kind) for size in SIZES for kind in ((_PLAIN, size, None), (_CONFIRMED, size, confirmation))
    ]  # fmt: skip
    return Part(PART, scale.append_rounds, [Preparation("starting a replica", 2, nodes), _prepared(entries)], cases)


def _prepared(entries: Callable[[], Sequence[Fields]]) -> Preparation:
    return Preparation("making entries", 2, entries)
