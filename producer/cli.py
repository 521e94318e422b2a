"""The `producer` command: its options, and how they become a configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from common import cli, log, metrics, proxy, settings
from common.channels import MAX_CHANNELS, read_shard
from common.settings import Secret
from common.streams.stream import Confirmation
from common.symbols import own_symbols, read_symbols
from producer import app as producer_app
from producer.config import FeedConfig, ProducerConfig
from producer.feeds import VENDORS
from producer.repair import check as check_repair
from producer.spool_folder import spool_folder

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Symbols = Annotated[
    list[str] | None,
    typer.Option(
        envvar="SYMBOLS",
        help="Symbols to subscribe, separated by commas: BTC/USD,ETH/USD,AAPL or AAPL:NASDAQ. May be repeated.",
    ),
]
SymbolsFile = Annotated[
    Path | None,
    typer.Option(envvar="SYMBOLS_FILE", help="File of symbols, one or more per line. Read again on SIGHUP."),
]
Url = Annotated[
    str | None,
    typer.Option(envvar="FEED_URL", help="Address of the websocket.", show_default="the vendor's"),
]
FeedName = Annotated[
    str,
    typer.Option(
        envvar="FEED_NAME",
        help="Name of this producer, if several write to one stream.",
        show_default="the feed",
    ),
]
SpoolMax = Annotated[
    int,
    typer.Option(
        envvar="SPOOL_MAX", min=0, help="Maximum size of the spool in bytes. Beyond it, prices are lost and counted."
    ),
]
QueueMax = Annotated[
    int,
    typer.Option(envvar="QUEUE_MAX", min=1, help="Maximum number of prices in memory. Beyond it, prices are lost."),
]
AppendTimeout = Annotated[
    float,
    typer.Option(
        envvar="APPEND_TIMEOUT",
        min=0.01,
        max=300,
        help="Seconds that Redis may take to answer before a batch goes to the spool. A kill can lose the prices of "
        "this time. Raise it if Redis is far away.",
    ),
]
RedisReplicas = Annotated[
    int,
    typer.Option(
        envvar="REDIS_REPLICAS",
        min=0,
        max=100,
        help="Number of Redis replicas that must have a price on disk before it counts as received. Until then it "
        "stays in the spool, too.",
    ),
]
ReplicaTimeout = Annotated[
    float,
    typer.Option(
        envvar="REPLICA_TIMEOUT",
        min=0.01,
        max=60,
        help="Seconds that the replicas may take before a batch goes to the spool, too. Set at least twice the round "
        "trip time to them.",
    ),
]
Standby = Annotated[
    bool,
    typer.Option(
        "--standby",
        envvar="STANDBY",
        help="Share a lease with the other producers of this feed name: one is active, the others wait.",
    ),
]
LeaseTime = Annotated[
    float,
    typer.Option(
        "--lease",
        envvar="LEASE",
        min=0.5,
        max=300,
        help="Seconds without the active producer until another one is active.",
    ),
]
Partitions = Annotated[
    int,
    typer.Option(
        envvar="PARTITIONS",
        min=1,
        max=MAX_CHANNELS,
        help="Number of channels: the symbols are distributed over as many pairs of streams. The limits of the spool "
        "and of the queue are divided by it.",
    ),
]
ShardOption = Annotated[
    str,
    typer.Option(
        "--shard",
        envvar="SHARD",
        help="Subscribe only the symbols of this shard: 2/5 is the second of five producers with the same symbols.",
        show_default="all symbols",
    ),
]
MaxSymbols = Annotated[
    int,
    typer.Option(
        envvar="MAX_SYMBOLS_PER_CONNECTION",
        min=0,
        help="Number of symbols that the plan allows on one connection; 0 means no limit. With more, the producer does "
        "not start.",
    ),
]
RepairOption = Annotated[
    bool,
    typer.Option(
        "--repair",
        envvar="REPAIR",
        help="After a reconnect, request missing prices as `tickpipe backfill` does. Needs DATABASE_URL.",
    ),
]
ResubscribeAfter = Annotated[
    float,
    typer.Option(envvar="RESUBSCRIBE_AFTER", min=1, help="Seconds without any price before subscribing again."),
]


@app.command(
    help="""Receive live prices from a vendor's websocket and append them to a Redis stream.

    Settings that can hold a secret are environment variables without an option:
    TWELVE_DATA_API_KEY (required for twelvedata) and REDIS_URL (default redis://localhost:6379/0).
    To keep one in a file, set …_FILE to the path, for example REDIS_URL_FILE.
    A `.env` file in the working folder is read.

    Exit status: 0 after SIGTERM or Ctrl-C, 1 after a failure that a retry may
    solve, 2 for wrong usage or configuration.
    """  # not a docstring: `python -OO` removes those
)
def producer(
    symbols: Symbols = None,
    symbols_file: SymbolsFile = None,
    feed: settings.FeedOption = "twelvedata",
    url: Url = None,
    price_stream: settings.PriceStream = settings.PRICE_STREAM,
    partitions: Partitions = 1,
    shard: ShardOption = "",
    max_symbols_per_connection: MaxSymbols = 0,
    feed_name: FeedName = "",
    spool_dir: settings.SpoolDir = None,
    spool_max: SpoolMax = 1 << 30,
    queue_max: QueueMax = 100_000,
    append_timeout: AppendTimeout = 0.1,
    redis_replicas: RedisReplicas = 0,
    replica_timeout: ReplicaTimeout = 0.5,
    standby: Standby = False,
    lease: LeaseTime = 5.0,
    resubscribe_after: ResubscribeAfter = 600.0,
    repair: RepairOption = False,
    metrics_port: settings.MetricsPort = 0,
    metrics_host: settings.MetricsHost = settings.METRICS_HOST,
    allowed_hosts: settings.AllowedHosts = "",
    unhealthy_after: settings.UnhealthyAfter = settings.UNHEALTHY_AFTER,
    log_level: settings.LogLevel = settings.LOG_LEVEL,
) -> None:
    """Read the environment, build the configuration and run the producer."""
    environ = cli.environment()
    vendor = VENDORS[feed]
    api_key = settings.api_key(environ) if vendor.needs_key else lambda: Secret("")
    redis_url = settings.redis_url(environ)
    log.configure(log_level, [api_key(), redis_url])
    if repair:
        check_repair(environ)
    own = read_shard(shard)
    name = f"{feed_name or feed} {own}" if own.count > 1 else feed_name or feed
    limit = max_symbols_per_connection or vendor.max_symbols
    feed_config = FeedConfig(name=name, vendor=vendor, shard=own, url=url, resubscribe_after=resubscribe_after)
    config = ProducerConfig(
        feed=replace(feed_config, proxy=proxy.for_url(feed_config.urls[0], environ)),  # after the check of the URL
        api_key=api_key,
        symbols=lambda: own_symbols(read_symbols(symbols or [], symbols_file), own, limit),
        reread_symbols=symbols_file is not None,
        redis_url=redis_url,
        price_stream=price_stream,
        partitions=partitions,
        spool_folder=spool_folder(spool_dir, redis_url, price_stream),
        spool_max=spool_max,
        queue_max=queue_max,
        append_timeout=append_timeout,
        confirmation=Confirmation(redis_replicas, replica_timeout) if redis_replicas else None,
        unhealthy_after=unhealthy_after,
        lease=lease if standby else None,
        repair=repair,
    )
    hosts = settings.read_hosts(allowed_hosts)
    server = metrics.Server(metrics_host, metrics_port, hosts) if metrics_port else None
    producer_app.run(config, server)


def main() -> None:
    """The console entry point."""
    cli.run(app, "producer")
