"""tickpipe's insert alone, of entries in memory as Redis returned them: `STREAM BATCH_SIZE COUNT`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from benchmarks.peers.rows import batches, print_cpu_time, read
from common.database.client import DatabaseClient
from common.settings import Secret
from common.streams.stream import Entry
from consumer.tables import PRICES
from consumer.writer import Writer


def _entries(stream: str, count: int) -> Iterator[Entry]:
    for entry_id, fields in read(stream, count):
        yield Entry(entry_id, [part for pair in fields.items() for part in pair])


def main() -> None:
    """Call Writer.insert_batch for each batch."""
    stream, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    found = list(batches(_entries(stream, count), size))
    writer = Writer(DatabaseClient(Secret(os.environ["DATABASE_URL"])))

    def work() -> None:
        for batch in found:
            writer.insert_batch(PRICES, "prices", batch)

    print_cpu_time(work)


if __name__ == "__main__":
    main()
