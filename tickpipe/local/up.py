"""`tickpipe up`: runs the whole pipeline, drains it, and compares received with stored prices."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial

from rich.console import Console

from common import clock, threads
from common.database import migrations
from common.database.client import DatabaseClient
from common.errors import OutageError, TickpipeError
from common.settings import Secret
from common.streams.channels import ChannelStreams
from producer.spool_folder import spool_folder
from tickpipe.inspect.database import DatabaseReader
from tickpipe.inspect.reader import StatusReader
from tickpipe.inspect.sizes import SizeProbe
from tickpipe.inspect.symbols import SymbolReader
from tickpipe.inspect.verdict import Verdict
from tickpipe.inspect.verify import verify
from tickpipe.local.config import UpConfig
from tickpipe.local.pipeline import Pipeline
from tickpipe.local.run_mode import RunMode
from tickpipe.local.servers.embedded import Servers, embedded_servers
from tickpipe.local.servers.stopping import StartStoppedError
from tickpipe.simulator.config import SimulatorConfig
from tickpipe.simulator.server import Simulator
from tickpipe.terminal.display import display

#: Seconds that the consumers have at the end to store the backlog.
DRAIN_TIMEOUT = 120.0
#: Seconds that `--for` waits for the first price.
FIRST_PRICE_TIMEOUT = 30.0


class NoPriceError(TickpipeError):
    """No price was received."""


class DifferenceError(TickpipeError):
    """Received and stored prices differ."""


def up(config: UpConfig, mode: RunMode, environ: Mapping[str, str], stop: threading.Event, console: Console) -> None:
    """Run the pipeline until `stop` is set or the time is over. Then drain, and compare received with stored prices.

    Returns early if `stop` is set before the pipeline runs. Raises ConfigurationError, OutageError, DifferenceError if
    the counts differ, and NoPriceError if no price was received.
    """
    with suppress(StartStoppedError), ExitStack() as stack:
        embedded = {"redis": mode.redis_url is None, "database": mode.database_url is None}
        servers = stack.enter_context(embedded_servers(mode.data_dir, **embedded, stop=stop))
        redis_url = mode.redis_url or Secret(servers.redis_url or "")
        database_url = mode.database_url or Secret(servers.database_url or "")
        child_environ = _child_environment(environ, config, redis_url, database_url)
        if mode.simulated:
            simulator = stack.enter_context(Simulator(SimulatorConfig(rate=config.rate)))
            child_environ |= {"FEED_URL": simulator.url, "TWELVE_DATA_API_KEY": "simulated"}
            child_environ |= {"TWELVE_DATA_API_KEY_FILE": ""}
        _print_addresses(console, mode, servers)

        store = DatabaseClient(database_url)
        channels = ChannelStreams.of_group(redis_url, config.price_stream, config.consumer_group, "observer")
        spool = spool_folder(mode.data_dir / "spool", redis_url, config.price_stream)
        probe = SizeProbe(channels.all, store, spool)
        symbols = SymbolReader(DatabaseReader(store)).statuses
        reader = StatusReader(channels, clock.microseconds, symbols=symbols, sizes=probe)
        for step in (partial(migrations.apply, store), reader.begin):
            _run_until_stopped(step, stop)
        # Not earlier: a stopped step still uses the connection, and closing it would wait.
        stack.callback(store.close)

        began = time.monotonic()
        pipeline = Pipeline(config, mode, servers, child_environ, console)
        title = "tickpipe  SIMULATED prices" if mode.simulated else "tickpipe  live prices"
        error = _run(pipeline, reader, RunTimer(config.seconds, reader), stop, console, title)
        waited = time.monotonic() - began >= FIRST_PRICE_TIMEOUT or not stop.is_set()
        store.close()  # a server that was restarted has closed the connection
        # All processes have ended: no session needs the usual wait for its producer.
        streams = channels.prices(), channels.feed()
        verdicts = verify(store, *streams, spool, since=reader.began, recheck_after=1.0, session_timeout=0.0)
        if _compare(verdicts, console) == 0 and (error or waited):
            raise NoPriceError(f"no price was received. {error or 'The producer reported no error'}")


def _child_environment(
    environ: Mapping[str, str], config: UpConfig, redis_url: Secret, database_url: Secret
) -> dict[str, str]:
    """The environment of the processes. Empty values replace those of the user."""
    return {
        **environ,
        "REDIS_URL": redis_url.reveal(),
        "REDIS_URL_FILE": "",
        "DATABASE_URL": database_url.reveal(),
        "DATABASE_URL_FILE": "",
        "FEED": config.feed,
        "PRICE_STREAM": config.price_stream,
        "CONSUMER_GROUP": config.consumer_group,
        "CONSUMER_NAME": "",
        "METRICS_PORT": "",  # the processes cannot share a port
        "METRICS_HOST": "",
    }


def _run_until_stopped(step: Callable[[], object], stop: threading.Event) -> None:
    """Run a step of the start in a thread. Raises its error, or StartStoppedError if `stop` is set first."""
    running = threads.in_thread(step)
    while not running.done():
        if stop.wait(0.02):
            raise StartStoppedError
    running.result()


def _run(
    pipeline: Pipeline,
    reader: StatusReader,
    is_over: Callable[[], bool],
    stop: threading.Event,
    console: Console,
    title: str,
) -> str:
    """Run the processes and show the view. At the end stop the producer, wait for the backlog, stop the consumers.

    Returns the producer's last error, or an empty string.
    """
    footer = f"Press Ctrl-C to stop and compare · logs: {pipeline.logs}"
    try:
        pipeline.start()
        with display(reader, console, title, footer, pipeline.producer_error) as refresh:
            while not stop.wait(0.25) and not is_over():
                pipeline.keep_running(stop)
                refresh()
            error = pipeline.producer_error()
            console.print("stopping: the producer first, then the consumers store the rest …")
            pipeline.stop_producer()
            _drain(pipeline, reader, refresh)
    finally:
        pipeline.stop()
    return error


class RunTimer:
    """Tells whether the run is over: `seconds` after the first price, or after FIRST_PRICE_TIMEOUT without one."""

    def __init__(self, seconds: float | None, reader: StatusReader) -> None:
        self._seconds = math.inf if seconds is None else seconds
        self._reader = reader
        self._started_at = time.monotonic()
        self._counts_from: float | None = None

    def __call__(self) -> bool:
        now = time.monotonic()
        if self._counts_from is None and (now - self._started_at > FIRST_PRICE_TIMEOUT or self._reader.received() > 0):
            self._counts_from = now
        return self._counts_from is not None and now - self._counts_from >= self._seconds


def _drain(pipeline: Pipeline, reader: StatusReader, refresh: Callable[[], None]) -> None:
    """Wait until all prices and feed events are stored, at most DRAIN_TIMEOUT: the comparison needs both."""
    deadline = time.monotonic() + DRAIN_TIMEOUT
    while time.monotonic() < deadline:
        with suppress(OutageError):  # the view shows the outage
            if reader.left() == 0:
                return
        pipeline.keep_running(threading.Event())
        refresh()
        time.sleep(0.1)


def _print_addresses(console: Console, mode: RunMode, servers: Servers) -> None:
    """Print the data folder and the variables that another terminal needs."""
    source = "SIMULATED prices (no API key, or --simulate)" if mode.simulated else "live prices"
    console.print(f"{source}; data in {mode.data_dir}", soft_wrap=True)
    if servers.redis_url:
        socket = servers.redis_url.removeprefix("unix://").partition("?")[0]
        console.print(
            f"  export REDIS_URL='{servers.redis_url}'      # redis-cli -s {socket} XLEN prices", soft_wrap=True
        )
    if servers.database_url:
        console.print(f"  export DATABASE_URL='{servers.database_url}'      # psql \"$DATABASE_URL\"", soft_wrap=True)
    console.print(f"  export SPOOL_DIR='{mode.data_dir / 'spool'}'      # tickpipe verify", soft_wrap=True)


def _compare(verdicts: Sequence[Verdict], console: Console) -> int:
    """Print received and stored prices of this run. Returns the received ones. Raises DifferenceError."""
    received = sum(verdict.expected for verdict in verdicts)
    stored = sum(verdict.stored for verdict in verdicts)
    dead = sum(verdict.dead_letters for verdict in verdicts)
    sound = received == stored + dead and all(verdict.sound for verdict in verdicts)
    line = f"received {received:,} {'=' if sound else '≠'} stored {stored:,}"
    console.print(line + (f" + dead letters {dead:,}" if dead else ""))
    if not sound:
        raise DifferenceError("\n".join(map(str, verdicts)))
    return received
