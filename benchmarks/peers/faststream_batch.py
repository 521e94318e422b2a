"""FastStream's batch subscriber with execute_values: `STREAM BATCH_SIZE COUNT`."""

from __future__ import annotations

import asyncio
import os
import sys

import psycopg2
from faststream.redis import RedisBroker, StreamSub
from psycopg2.extras import execute_values

from benchmarks.peers.rows import GROUP, INSERT, TEMPLATE, row


async def work(stream: str, size: int, count: int) -> None:
    """Store batches until `count` entries are stored. FastStream acknowledges each batch after its handler."""
    connection = psycopg2.connect(os.environ["DATABASE_URL"])
    left = count
    done = asyncio.Event()
    broker = RedisBroker(os.environ["REDIS_URL"], logger=None)

    async def store(batch: list[dict[str, str]]) -> None:
        nonlocal left
        rows = [row(fields) for fields in batch]
        with connection, connection.cursor() as cursor:
            execute_values(cursor, INSERT, rows, template=TEMPLATE, page_size=size)
        left -= len(batch)
        if left <= 0:
            done.set()

    source = StreamSub(stream, group=GROUP, consumer="peer", batch=True, max_records=size, last_id="0")
    broker.subscriber(stream=source)(store)
    async with broker:
        await broker.start()
        if count:
            await done.wait()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
