"""A plain drain with redis-py and execute_values: `STREAM BATCH_SIZE`."""

from __future__ import annotations

import os
import sys
from typing import Any, cast

import psycopg2
import redis
from psycopg2.extras import execute_values

from benchmarks.peers.rows import GROUP, INSERT, TEMPLATE, row


def main() -> None:
    """Read, insert, commit and acknowledge batches until the stream is empty."""
    stream, size = sys.argv[1], int(sys.argv[2])
    client = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, protocol=2)
    client.xgroup_create(stream, GROUP, id="0", mkstream=True)
    connection = psycopg2.connect(os.environ["DATABASE_URL"])
    while reply := cast("Any", client.xreadgroup(GROUP, "peer", {stream: ">"}, count=size)):
        entries = reply[0][1]
        rows = [row(fields) for _, fields in entries]
        with connection, connection.cursor() as cursor:
            execute_values(cursor, INSERT, rows, template=TEMPLATE, page_size=size)
        client.xack(stream, GROUP, *[entry_id for entry_id, _ in entries])


if __name__ == "__main__":
    main()
