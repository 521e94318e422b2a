"""Connections to Redis and to the database, from the environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common import cli, log, settings
from common.database.client import DatabaseClient
from common.streams.client import connect
from common.streams.group import ConsumerGroup
from producer.spool import spool_folder
from tickpipe.inspect.sizes import SizeProbe


def open_connections(group: str) -> tuple[DatabaseClient, Callable[[str], ConsumerGroup]]:
    """The database, and a function from a stream's name to the stream. Also sets up logging: errors only.

    Raises ConfigurationError.
    """
    redis_url, database_url = settings.redis_url(cli.environment()), cli.database_url()
    log.configure("ERROR", [redis_url, database_url])
    client = connect(redis_url)
    return DatabaseClient(database_url), lambda name: ConsumerGroup(client, name, group, "tickpipe")


def size_probe(store: DatabaseClient, price_stream: str, spool_dir: Path | None, disk: Path | None) -> SizeProbe:
    """Measures the table, both streams, this machine's spool and the database's disk. Raises ConfigurationError."""
    url = settings.redis_url(cli.environment())
    spool = spool_folder(spool_dir, url, price_stream)
    return SizeProbe(connect(url), [price_stream, f"{price_stream}:feed"], store, spool, disk)
