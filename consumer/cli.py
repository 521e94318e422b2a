"""The options of the `consumer` command."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Annotated

import typer

from common import cli, log, metrics, settings
from common.channels import read_channels
from common.duration import read_duration
from consumer import app as consumer_app
from consumer.team import ConsumerConfig
from consumer.worker import WorkerConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


ConsumerName = Annotated[
    str,
    typer.Option(
        envvar="CONSUMER_NAME", help="This consumer's name.", show_default="host, pid and 4 random hex digits"
    ),
]
ClaimIdle = Annotated[
    float,
    typer.Option(
        envvar="CLAIM_IDLE",
        min=0.1,
        max=86_400,
        help="Seconds after which another consumer's pending entries are claimed.",
    ),
]
Drain = Annotated[bool, typer.Option("--drain", help="Exit when no entry is left to read or pending on any consumer.")]
Partitions = Annotated[
    str,
    typer.Option(
        envvar="CONSUMER_PARTITIONS",
        help="Channels to serve, such as 0-3,7.",
        show_default="all that producers have used",
    ),
]
StreamKeep = Annotated[
    str,
    typer.Option(
        envvar="STREAM_KEEP",
        help="How long entries stay in the streams after they were appended, also when they are stored: 10m, 1h, or 0. "
        "`tickpipe replay` stores them again.",
    ),
]
StreamKeepBytes = Annotated[
    int,
    typer.Option(
        envvar="STREAM_KEEP_BYTES",
        min=0,
        help="Bytes of a stream above which stored entries stay for a shorter time; 0 means no limit.",
    ),
]


@app.command()
def consumer(
    price_stream: settings.PriceStream = settings.PRICE_STREAM,
    partitions: Partitions = "",
    consumer_group: settings.ConsumerGroup = settings.CONSUMER_GROUP,
    consumer_name: ConsumerName = "",
    max_batch_size: settings.MaxBatchSize = settings.MAX_BATCH_SIZE,
    claim_idle: ClaimIdle = settings.CLAIM_IDLE,
    drain: Drain = False,
    stream_keep: StreamKeep = settings.STREAM_KEEP,
    stream_keep_bytes: StreamKeepBytes = settings.STREAM_KEEP_BYTES,
    metrics_port: settings.MetricsPort = 0,
    metrics_host: settings.MetricsHost = settings.METRICS_HOST,
    allowed_hosts: settings.AllowedHosts = "",
    unhealthy_after: settings.UnhealthyAfter = settings.UNHEALTHY_AFTER,
    log_level: settings.LogLevel = settings.LOG_LEVEL,
) -> None:
    """Store the entries of a Redis stream in PostgreSQL, as one consumer of a group. Start as many as you like.

    Settings that can hold a secret are variables only: REDIS_URL (default redis://localhost:6379/0) and DATABASE_URL
    (default postgresql://localhost:5432/tickpipe). REDIS_URL_FILE and DATABASE_URL_FILE name a file instead. A `.env`
    in the working folder is read. The consumer applies the schema at start.

    Exit status: 0 after SIGTERM, Ctrl-C or a drain, 1 after a failure worth a retry, 2 for wrong usage or
    configuration.
    """
    environ = cli.environment()
    redis_url, database_url = settings.redis_url(environ), cli.database_url()
    log.configure(log_level, [redis_url, database_url])
    config = ConsumerConfig(
        redis_url=redis_url,
        database_url=database_url,
        name=consumer_name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}",
        price_stream=price_stream,
        channels=read_channels(partitions) if partitions else None,
        group=consumer_group,
        unhealthy_after=unhealthy_after,
        worker=WorkerConfig(
            max_batch_size=max_batch_size,
            claim_idle=claim_idle,
            drain=drain,
            stream_keep=read_duration(stream_keep, "--stream-keep"),
            stream_keep_bytes=stream_keep_bytes,
        ),
    )
    hosts = settings.read_hosts(allowed_hosts)
    consumer_app.run(config, metrics.Server(metrics_host, metrics_port, hosts) if metrics_port else None)


def main() -> None:
    """The console entry point."""
    cli.run(app, "consumer")
