"""Code that the peers share: rows of Python values, the plain INSERT for execute_values, and the CPU time."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

import redis

GROUP = "bench"

#: to_timestamp takes seconds, which cost psycopg2 less than datetimes.
INSERT = """
INSERT INTO prices_real_time
    (session, seq, symbol, time, price, day_volume, bid, ask, exchange, received_at)
VALUES %s ON CONFLICT DO NOTHING
"""
TEMPLATE = "(%s, %s, %s, to_timestamp(%s), %s, %s, %s, %s, %s, to_timestamp(%s))"


def row(fields: Mapping[str, str]) -> tuple[Any, ...]:
    """The row of one entry, for TEMPLATE."""
    return (
        int(fields["session"]),
        int(fields["seq"]),
        fields["symbol"],
        int(fields["time"]),
        float(fields["price"]),
        _number(fields["day_volume"]),
        _number(fields["bid"]),
        _number(fields["ask"]),
        fields["exchange"] or None,
        int(fields["received"]) / 1e6,
    )


def _number(text: str) -> float | None:
    return float(text) if text else None


def read(key: str, count: int) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of a stream as Redis returns them, for peers that insert from memory."""
    client = redis.Redis.from_url(os.environ["REDIS_URL"], protocol=2)
    start = b"-"
    while found := cast("list[Any]", client.xrange(key, min=cast("Any", start), count=min(count, 10_000))):
        yield from found
        start = b"(" + found[-1][0]


def batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items. The last list may be shorter."""
    while batch := list(islice(items, size)):
        yield batch


def print_cpu_time(work: Callable[[], object]) -> None:
    """Run `work` and print its CPU time in seconds as JSON."""
    before = time.process_time()
    work()
    json.dump({"cpu": time.process_time() - before}, sys.stdout)
