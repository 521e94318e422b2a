"""Measures the duration of `tickpipe verify`: `python -m benchmarks.verify_scale [ROWS]`, default 10 million."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path

import psycopg2

from common.database import migrations
from common.database.client import DatabaseClient
from common.settings import Secret
from common.streams.client import connect
from common.streams.group import ConsumerGroup
from tests.support.folders import temporary_folder
from tickpipe.inspect.verify import verify
from tickpipe.local.servers.embedded import embedded_servers

FILL = """
INSERT INTO prices_real_time (time, symbol, price, received_at, session, seq)
SELECT to_timestamp(1767571200 + n / 150), 'S' || n %% 20, 1.5, to_timestamp(1767571200 + n / 150.0),
       1767571200000000, n
FROM generate_series(%(first)s, %(last)s) AS n;
"""

STOPPED_EVENT = """
INSERT INTO feed_events VALUES (1767571200000000, 1, now(), 'stopped', jsonb_build_object(
    'last_seq', %(rows)s, 'time_min', 1767571200, 'time_max', 1767571200 + %(rows)s / 150));

"""


def main() -> None:
    """Fill a table with one session and measure verify before and after the session is verified, and with --all."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    with temporary_folder() as folder, embedded_servers(folder / "data") as servers:
        url = Secret(servers.database_url or "")
        stream = ConsumerGroup(connect(Secret(servers.redis_url or ""), "prices"), "prices", "timescale", "bench")
        stream.ensure_group()
        with closing(DatabaseClient(url)) as store, closing(psycopg2.connect(url.reveal())) as connection:
            migrations.apply(store)
            for first in range(1, rows + 1, 1_000_000):
                with connection, connection.cursor() as cursor:
                    cursor.execute(FILL, {"first": first, "last": min(rows, first + 999_999)})
                print(f"{min(rows, first + 999_999):,} rows", end="\r", file=sys.stderr, flush=True)
            with connection, connection.cursor() as cursor:
                cursor.execute(STOPPED_EVENT, {"rows": rows})
            for label, everything in (("complete", False), ("verified", False), ("complete, --all", True)):
                started = time.monotonic()
                verdicts = verify(store, [stream], [stream], Path(folder), everything=everything)
                print(f"{rows:,} rows, {label}: {time.monotonic() - started:.1f} s, {len(verdicts)} sessions scanned")


if __name__ == "__main__":
    main()
