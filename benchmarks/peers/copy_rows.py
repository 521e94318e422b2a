"""COPY of the same rows from memory, as the upper limit: `STREAM BATCH_SIZE COUNT`.

The text is built before the measurement starts.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from io import BytesIO

import psycopg2

from benchmarks.peers.rows import batches, print_cpu_time, read

COPY = (
    "COPY prices_real_time (session, seq, symbol, time, price, day_volume, bid, ask, exchange, received_at) FROM STDIN"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def line(fields: dict[bytes, bytes]) -> bytes:
    """A row in COPY's text format. The values need no escapes."""
    values = [value or b"\\N" for value in fields.values()]
    values[3] = str(_EPOCH + timedelta(seconds=int(fields[b"time"]))).encode()
    values[9] = str(_EPOCH + timedelta(microseconds=int(fields[b"received"]))).encode()
    return b"\t".join(values) + b"\n"


def main() -> None:
    """COPY and commit each batch."""
    stream, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    texts = [b"".join(lines) for lines in batches((line(fields) for _, fields in read(stream, count)), size)]
    connection = psycopg2.connect(os.environ["DATABASE_URL"])

    def work() -> None:
        for text in texts:
            with connection, connection.cursor() as cursor:
                cursor.copy_expert(COPY, BytesIO(text))

    print_cpu_time(work)


if __name__ == "__main__":
    main()
