"""The method of TimescaleDB's tutorial: `STREAM COUNT`.

Inserts batches of 100 rows with four columns, without a broker or a primary key. Events come from a list in memory,
which is read from the stream before the measurement starts. Two details differ from the tutorial: this peer does not
print each price, and it replaces a deprecated function with its documented successor.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import Any

import psycopg2
from psycopg2.extras import execute_values

from benchmarks.peers.rows import print_cpu_time, read

BATCH_SIZE = 100


def event(fields: dict[bytes, bytes]) -> dict[str, Any]:
    """A price event in the form of the vendor's wrapper."""
    found: dict[str, Any] = {
        "event": "price",
        "symbol": fields[b"symbol"].decode(),
        "timestamp": int(fields[b"time"]),
        "price": float(fields[b"price"]),
    }
    if fields[b"day_volume"]:
        found["day_volume"] = float(fields[b"day_volume"])
    return found


def main() -> None:
    """Pass each event to on_event."""
    events = [event(fields) for _, fields in read(sys.argv[1], int(sys.argv[2]))]
    connection = psycopg2.connect(os.environ["DATABASE_URL"])
    batch: list[tuple[Any, ...]] = []

    def on_event(event: dict[str, Any]) -> None:
        nonlocal batch
        if event["event"] == "price":
            timestamp = datetime.fromtimestamp(event["timestamp"], UTC)
            batch.append((timestamp, event["symbol"], event["price"], event.get("day_volume")))
            if len(batch) == BATCH_SIZE:
                cursor = connection.cursor()
                execute_values(cursor, "INSERT INTO tutorial (time, symbol, price, day_volume) VALUES %s", batch)
                connection.commit()
                batch = []

    def work() -> None:
        for each in events:
            on_event(each)

    print_cpu_time(work)


if __name__ == "__main__":
    main()
