"""Connections to Redis and to the database, from the environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common import cli, log, settings
from common.channels import read_channels
from common.database.client import DatabaseClient
from common.settings import Secret
from common.streams.client import connect
from common.streams.group import ConsumerGroup
from consumer.replay import Route
from consumer.tables import FEED, PRICES
from producer.spool_folder import spool_folder
from tickpipe.inspect.channels import Channels
from tickpipe.inspect.sizes import SizeProbe


def open_connections(group: str, price_stream: str, partitions: str = "") -> tuple[DatabaseClient, Channels]:
    """The database, and the streams of all channels. Also sets up logging: errors only.

    Raises ConfigurationError.
    """
    database_url = cli.database_url()
    return DatabaseClient(database_url), open_channels(group, price_stream, [database_url], partitions)


def open_channels(group: str, price_stream: str, secrets: Sequence[Secret], partitions: str | None) -> Channels:
    """The streams of all channels, or of those in `partitions`. Also sets up logging: errors only, without `secrets`.

    Raises ConfigurationError.
    """
    redis_url = settings.redis_url(cli.environment())
    log.configure("ERROR", [redis_url, *secrets])

    def open_stream(key: str) -> ConsumerGroup:
        return ConsumerGroup(connect(redis_url, key), key, group, "tickpipe")

    return Channels(open_stream, price_stream, read_channels(partitions) if partitions else None)


def size_probe(
    store: DatabaseClient, channels: Channels, price_stream: str, spool_dir: Path | None, disk: Path | None
) -> SizeProbe:
    """Measures the table, all streams, this machine's spools and the database's disk. Raises ConfigurationError."""
    spool = spool_folder(spool_dir, settings.redis_url(cli.environment()), price_stream)
    return SizeProbe(channels.all, store, spool, disk)


def routes(channels: Channels) -> list[tuple[str, Route]]:
    """Each stream with its table, and whether it holds "prices" or "feed" events. Raises OutageError."""
    prices = [("prices", Route(stream, PRICES)) for stream in channels.prices()]
    return [*prices, *(("feed", Route(stream, FEED)) for stream in channels.feed())]
