"""The `producer` command: live prices from Twelve Data's websocket to a Redis stream."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from common import cli, clock, log, metrics, process, proxy, settings, threads
from common.errors import ConfigurationError, OutageError
from common.streams.client import TIMEOUT, connect
from common.streams.stream import Stream
from common.symbols import read_symbols
from producer.config import DEFAULT_URL, FeedConfig
from producer.feed import Feed
from producer.metrics import ProducerMetrics
from producer.publisher import Publisher, Streams
from producer.queue import EventQueue
from producer.replay import Replayer, spool_path
from producer.spool import Spool, make_folder, spool_folder

logger = logging.getLogger("producer")

#: Seconds to come to an end after SIGTERM.
STOP_WITHIN = 8.5

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def producer(
    symbols: Annotated[
        list[str] | None,
        typer.Option(
            envvar="SYMBOLS",
            help="What to subscribe: BTC/USD,ETH/USD,AAPL or AAPL:NASDAQ. Takes commas; may be repeated.",
        ),
    ] = None,
    symbols_file: Annotated[
        Path | None,
        typer.Option(envvar="SYMBOLS_FILE", help="A file of symbols, one or more a line; read again on SIGHUP."),
    ] = None,
    url: Annotated[str, typer.Option(envvar="TWELVE_DATA_URL", help="The websocket to read.")] = DEFAULT_URL,
    price_stream: settings.PriceStream = settings.PRICE_STREAM,
    feed_name: Annotated[
        str, typer.Option(envvar="FEED_NAME", help="This producer's name, where several feed one stream.")
    ] = "twelvedata",
    spool_dir: settings.SpoolDir = None,
    spool_max: Annotated[
        int,
        typer.Option(
            envvar="SPOOL_MAX", min=0, help="Most bytes in the spool; beyond it prices are lost, and counted."
        ),
    ] = 1 << 30,
    intake_max: Annotated[
        int, typer.Option(envvar="INTAKE_MAX", min=1, help="Most prices in memory on their way to Redis or the spool.")
    ] = 100_000,
    append_timeout: Annotated[
        float,
        typer.Option(
            envvar="APPEND_TIMEOUT",
            min=0.01,
            help="Seconds Redis may take to answer before a batch goes to disk instead: what a kill can cost. "
            "Raise it where Redis is far away.",
        ),
    ] = 0.1,
    resubscribe_after: Annotated[
        float,
        typer.Option(envvar="RESUBSCRIBE_AFTER", min=1, help="Seconds without any price until it subscribes again."),
    ] = 600.0,
    metrics_port: settings.MetricsPort = 0,
    metrics_host: settings.MetricsHost = settings.METRICS_HOST,
    allowed_hosts: settings.AllowedHosts = "",
    unhealthy_after: settings.UnhealthyAfter = settings.UNHEALTHY_AFTER,
    log_level: settings.LogLevel = settings.LOG_LEVEL,
) -> None:
    """Receive live prices from Twelve Data's websocket and append them to a Redis stream.

    Variables without an option, since they can hold a secret: TWELVE_DATA_API_KEY (needed), REDIS_URL (default
    redis://localhost:6379/0); each also as …_FILE, naming a file that holds it. A `.env` in the working folder is read.

    Ends with status 0 when told to stop (SIGTERM, Ctrl-C), 1 after a failure worth a retry, 2 for wrong usage or
    configuration.
    """
    environ = cli.environment()
    api_key = settings.api_key(environ)
    redis_url = settings.redis_url(environ)
    log.configure(log_level, [api_key(), redis_url])
    wanted = read_symbols(symbols or [], symbols_file)
    config = FeedConfig(name=feed_name, url=url, resubscribe_after=resubscribe_after)
    config = replace(config, proxy=proxy.for_url(url, environ))  # after the check of the URL

    def streams(timeout: float = TIMEOUT) -> Streams:
        client = connect(redis_url, timeout=timeout)
        return Streams(Stream(client, price_stream), Stream(client, f"{price_stream}:feed"))

    client = connect(redis_url)
    checked = [Stream(client, price_stream), Stream(client, f"{price_stream}:feed")]
    folder = spool_folder(spool_dir, redis_url, price_stream)
    make_folder(folder)
    hosts = settings.read_hosts(allowed_hosts)
    server = metrics.Server(metrics_host, metrics_port, hosts) if metrics_port else None
    _check_redis(checked)

    stop, stop_replay = process.stop_on_signals(), threading.Event()
    spool = Spool(spool_path(folder, clock.microseconds()), max_bytes=spool_max)
    intake = EventQueue(intake_max)
    feed = Feed(config, api_key=api_key, symbols=wanted, intake=intake, clock=clock.microseconds)
    ways = {"straight": streams(append_timeout), "spool": streams(), "orphan": streams()}
    publisher = Publisher(intake, ways["straight"], spool)
    replayer = Replayer(spool, ways["spool"], ways["orphan"], stop_replay)
    if server:
        told = ProducerMetrics(feed, publisher, spool, ways, unhealthy_after=unhealthy_after)
        server.serve(told, told.health)
    if symbols_file:
        signal.signal(signal.SIGHUP, lambda *_: _reread(feed, symbols or [], symbols_file))

    threads.spare_the_collector()
    receiving = threads.in_thread(feed.run, stop)
    publishing = threads.in_thread(publisher.run)
    replaying = [threads.in_thread(replayer.run), threads.in_thread(replayer.run_orphans)]
    everyone = [receiving, publishing, *replaying]
    while not stop.wait(0.2) and not any(thread.done() for thread in everyone):
        pass

    stop.set()
    until = time.monotonic() + STOP_WITHIN
    wait([receiving], timeout=STOP_WITHIN - 3.0)
    intake.close()
    wait([publishing], timeout=until - time.monotonic() - 1.0)
    while spool.entries and time.monotonic() < until - 0.5:
        time.sleep(0.05)
    stop_replay.set()
    wait(replaying, timeout=0.5)
    spool.close()
    logger.info(
        "stopped: %d price events received, %d entries appended, %d spooled (%d wait on disk), %d price events lost",
        feed.received, publisher.appended, publisher.spooled, spool.entries, publisher.lost + feed.lost,
    )  # fmt: skip
    for thread in everyone:
        if thread.done():
            thread.result()
    if not publishing.done():
        raise OutageError("told to stop while neither Redis nor the spool took what was in hand: it is lost")


def _reread(feed: Feed, options: Sequence[str], file: Path) -> None:
    try:
        feed.set_symbols(read_symbols(options, file))
    except ConfigurationError as error:
        logger.error("SIGHUP: %s; the symbols stay as they were", error)


def _check_redis(streams: Sequence[Stream]) -> None:
    """A wrong login, right or key ends the start; a Redis that is away does not: prices wait in the spool."""
    try:
        for stream in streams:
            stream.check_append()
    except OutageError as error:
        logger.warning("%s; prices wait in the spool until it is back", error)


def main() -> None:
    """The console entry point."""
    cli.run(app, "producer")
