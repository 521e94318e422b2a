"""The `consumer` command: blocks of a Redis stream to the database. Start as many as you like."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import wait
from contextlib import suppress
from typing import Annotated

import typer

from common import cli, clock, log, metrics, process, settings, threads
from common.database import migrations
from common.errors import OutageError, TickpipeError
from common.retry import retrying
from common.streams.client import connect
from common.streams.stream import Stream
from consumer.metrics import BacklogWatch, ConsumerMetrics, MeasuredStore
from consumer.tables import FEED, PRICES
from consumer.worker import Route, Worker, WorkerConfig

logger = logging.getLogger("consumer")

#: Seconds to come to an end after SIGTERM.
STOP_WITHIN = 8.5
#: Seconds between two words on how far `--drain` is, on a terminal.
TELL_EVERY = 2.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def consumer(
    price_stream: settings.PriceStream = "prices",
    consumer_group: settings.ConsumerGroup = "timescale",
    consumer_name: Annotated[
        str,
        typer.Option(
            envvar="CONSUMER_NAME",
            help="This consumer's name.",
            show_default="host, pid and 4 random hex digits",
        ),
    ] = "",
    max_batch_size: settings.MaxBatchSize = 1000,
    claim_idle: Annotated[
        float,
        typer.Option(
            envvar="CLAIM_IDLE", min=0.1, help="Seconds after which another consumer's entries are taken over."
        ),
    ] = 30.0,
    drain: Annotated[
        bool, typer.Option("--drain", help="End when nothing is left to read and nothing is pending on anybody.")
    ] = False,
    metrics_port: settings.MetricsPort = 0,
    metrics_host: settings.MetricsHost = "127.0.0.1",
    allowed_hosts: settings.AllowedHosts = "",
    unhealthy_after: settings.UnhealthyAfter = 60.0,
    log_level: settings.LogLevel = "INFO",
) -> None:
    """Read blocks of a Redis stream as one of a consumer group and store each in one transaction.

    Variables without an option, since they can hold a secret: REDIS_URL (default redis://localhost:6379/0),
    DATABASE_URL (default postgresql://localhost:5432/tickpipe); each also as …_FILE, naming a file that holds it. A
    `.env` in the working folder is read. The schema is applied at start.

    Ends with status 0 when told to stop (SIGTERM, Ctrl-C) or drained, 1 after a failure worth a retry, 2 for wrong
    usage or configuration.
    """
    environ = cli.environment()
    redis_url, database_url = settings.redis_url(environ), cli.database_url()
    log.configure(log_level, [redis_url, database_url])
    name = consumer_name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
    client = connect(redis_url)
    store = MeasuredStore(database_url, clock=clock.microseconds)
    hosts = settings.read_hosts(allowed_hosts)
    server = metrics.Server(metrics_host, metrics_port, hosts) if metrics_port else None
    stop = process.stop_on_signals()
    keys = {"prices": price_stream, "feed": f"{price_stream}:feed"}
    lanes = [
        Route(Stream(client, keys["prices"], consumer_group, name), PRICES),
        Route(Stream(client, keys["feed"], consumer_group, name), FEED),
    ]
    config = WorkerConfig(max_batch_size=max_batch_size, claim_idle=claim_idle, drain=drain)
    worker = Worker(lanes, store, config, stop=stop, clock=clock.microseconds)
    if server:
        looking = connect(redis_url)  # of its own: the worker's may hang
        watch = BacklogWatch({role: Stream(looking, key, consumer_group) for role, key in keys.items()})
        told = ConsumerMetrics(worker, store, watch, unhealthy_after=unhealthy_after)
        server.serve(told, told.health)
        threads.in_thread(watch.run, stop)

    def work() -> None:
        retry = retrying(stop, logger, worker.progress.failed)
        new = "" if retry(_check_redis, lanes) else ", a new stream: no producer has written to it yet"
        retry(lambda: migrations.apply(store))
        retry(store.check_rights)
        logger.info("%s reads %s as one of %s%s", name, price_stream, consumer_group, new)
        worker.run()

    threads.spare_the_collector()
    # In a thread, since a call that hangs in the database's library would keep the main thread from hearing signals.
    working = threads.in_thread(work)
    looking_at = [Stream(connect(redis_url), key, consumer_group) for key in keys.values()]
    began = last = time.monotonic()
    while not stop.wait(0.2) and not working.done():
        if drain and sys.stderr.isatty() and time.monotonic() - last > TELL_EVERY:
            last = time.monotonic()
            _tell(worker, looking_at, last - began)
    stop.set()
    wait([working], timeout=STOP_WITHIN)
    logger.info(
        "stopped: %d rows stored, %d were there already, %d dead letters, %d blocks",
        worker.totals.stored, worker.totals.duplicates, worker.totals.dead_letters, worker.totals.blocks,
    )  # fmt: skip
    if not working.done():
        raise OutageError("told to stop while the database or Redis did not answer; what is pending will be claimed")
    working.result()


def _check_redis(lanes: Sequence[Route]) -> bool:
    """Whether the stream of the prices is there. Raises ConfigurationError for a key or a right that is wrong."""
    there = [lane.stream.check_consume() for lane in lanes]
    lanes[0].stream.check_reports()
    return there[0]


def _tell(worker: Worker, streams: Sequence[Stream], seconds: float) -> None:
    """Log how far a drain is that has lasted so long."""
    done = worker.totals.stored + worker.totals.duplicates + worker.totals.dead_letters
    with suppress(TickpipeError):  # where something is away, the worker says so
        left = sum(each.lag + each.pending for each in (stream.backlog() for stream in streams))
        time_left = left * seconds / max(done, 1)
        logger.info("drain: %d done, %d left, %.0f/s, about %.0f s left", done, left, done / seconds, time_left)


def main() -> None:
    """The console entry point."""
    cli.run(app, "consumer")
