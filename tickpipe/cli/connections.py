"""Connections to Redis and to the database, from the environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common import cli, log, settings
from common.channels import read_channels
from common.database.client import DatabaseClient
from common.settings import Secret
from common.streams.channels import ChannelStreams
from consumer.replay import Route
from consumer.tables import FEED, PRICES
from producer.spool_folder import spool_folder
from tickpipe.inspect.sizes import SizeProbe


def open_connections(group: str, price_stream: str, partitions: str = "") -> tuple[DatabaseClient, ChannelStreams]:
    """The database, and the streams of all channels. Also sets up logging: errors only.

    Raises ConfigurationError.
    """
    database_url = cli.database_url()
    return DatabaseClient(database_url), open_channels(group, price_stream, [database_url], partitions)


def open_channels(group: str, price_stream: str, secrets: Sequence[Secret], partitions: str = "") -> ChannelStreams:
    """The streams of all channels, or of those in `partitions`. Also sets up logging: errors only, without `secrets`.

    Raises ConfigurationError.
    """
    redis_url = settings.redis_url(cli.environment())
    log.configure("ERROR", [redis_url, *secrets])
    only = read_channels(partitions) if partitions else None
    return ChannelStreams.of_group(redis_url, price_stream, group, "tickpipe", only)


def size_probe(
    store: DatabaseClient, channels: ChannelStreams, price_stream: str, spool_dir: Path | None, disk: Path | None
) -> SizeProbe:
    """Measures the table, all streams, this machine's spools and the database's disk. Raises ConfigurationError."""
    spool = spool_folder(spool_dir, settings.redis_url(cli.environment()), price_stream)
    return SizeProbe(channels.all, store, spool, disk)


def routes(channels: ChannelStreams) -> list[dict[str, Route]]:
    """The streams of each channel with their tables, by "prices" and "feed". Raises OutageError, ConfigurationError."""
    return [
        {"prices": Route(prices, PRICES), "feed": Route(feed, FEED)}
        for prices, feed in map(channels.both, channels.keys())
    ]
