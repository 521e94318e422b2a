"""`tickpipe up`: the whole pipeline in one command, stopped in its order."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.live import Live

from common import clock, settings, threads
from common.database import migrations
from common.database.client import DatabaseClient
from common.errors import ConfigurationError, OutageError, TickpipeError
from common.settings import Secret
from common.streams.client import connect
from common.streams.group import ConsumerGroup
from producer.spool import spool_folder
from tickpipe import dashboard
from tickpipe.inspect.sizes import SizeProbe
from tickpipe.inspect.status import Status, StatusReader, backlog_left
from tickpipe.inspect.verdict import Verdict
from tickpipe.inspect.verify import verify
from tickpipe.local.processes import DifferenceError, ManagedProcess, NoPriceError, stop_all
from tickpipe.local.servers.embedded import Servers, default_data_dir, embedded_servers
from tickpipe.local.servers.stopping import StartStoppedError
from tickpipe.simulator.websocket import Simulator, SimulatorConfig
from tickpipe.terminal import live_view

#: Seconds between two plain lines.
LINE_EVERY = 5.0
#: Seconds the consumers get to store what is left, at the end.
DRAIN_WITHIN = 120.0
#: Seconds that `--for` waits for the first price before its time begins.
FIRST_PRICE_WITHIN = 30.0


@dataclass(frozen=True, kw_only=True)
class UpConfig:
    """What `tickpipe up` was asked for. `rate`: simulated price events a second; `seconds`: None until Ctrl-C."""

    symbols: Sequence[str]
    consumers: int
    seconds: float | None
    simulate: bool
    rate: float
    data_dir: Path | None
    price_stream: str
    consumer_group: str
    dashboard: bool = False


@dataclass(frozen=True)
class Home:
    """Where the prices go and come from; simulated and real ones never share one."""

    simulated: bool
    data_dir: Path
    redis_url: Secret | None  # None: embedded
    database_url: Secret | None


def choose_home(config: UpConfig, environ: Mapping[str, str]) -> Home:
    """Decide between simulated and real, embedded and given. Raises ConfigurationError before anything is written."""
    key = settings.read_api_key(environ)
    redis_url = settings.read_redis_url(environ)
    database_url = settings.read_database_url(environ)
    if key is None and not config.simulate and (redis_url or database_url):
        given = " and ".join(name for name, url in (("REDIS_URL", redis_url), ("DATABASE_URL", database_url)) if url)
        raise ConfigurationError(
            f"{given} is set, and there is no API key: simulated prices would go among your own. "
            "Set TWELVE_DATA_API_KEY for real prices, or say --simulate to mean it"
        )
    simulated = config.simulate or key is None
    kind: Literal["demo", "live"] = "demo" if simulated else "live"
    data_dir = config.data_dir / kind if config.data_dir else default_data_dir(kind)
    return Home(simulated, data_dir, redis_url, database_url)


def up(config: UpConfig, home: Home, environ: Mapping[str, str], stop: threading.Event, console: Console) -> None:
    """Run the pipeline until `stop` is set or the time is over; then drain, and compare received with stored.

    Returns early if `stop` is set before the pipeline runs. Raises ConfigurationError, OutageError, DifferenceError if
    the counts differ, and NoPriceError if no price was received.
    """
    with suppress(StartStoppedError), ExitStack() as stack:
        redis, database = home.redis_url is None, home.database_url is None
        servers = stack.enter_context(embedded_servers(home.data_dir, redis=redis, database=database, stop=stop))
        redis_url = home.redis_url or Secret(servers.redis_url or "")
        database_url = home.database_url or Secret(servers.database_url or "")
        child_environ = {**environ, "REDIS_URL": redis_url.reveal(), "DATABASE_URL": database_url.reveal()}
        child_environ |= {"REDIS_URL_FILE": "", "DATABASE_URL_FILE": "", "PRICE_STREAM": config.price_stream}
        child_environ |= {"CONSUMER_GROUP": config.consumer_group, "CONSUMER_NAME": ""}
        child_environ |= {"METRICS_PORT": "", "METRICS_HOST": ""}  # they would all want the one port
        if home.simulated:
            simulator = stack.enter_context(Simulator(SimulatorConfig(rate=config.rate)))
            child_environ |= {"TWELVE_DATA_URL": simulator.url, "TWELVE_DATA_API_KEY": "simulated"}
            child_environ |= {"TWELVE_DATA_API_KEY_FILE": ""}

        _print_places(console, home, servers.redis_url, servers.database_url)
        store = DatabaseClient(database_url)
        client = connect(redis_url)
        stream = ConsumerGroup(client, config.price_stream, config.consumer_group, "observer")
        feed = ConsumerGroup(client, f"{config.price_stream}:feed", config.consumer_group, "observer")
        spool = spool_folder(home.data_dir / "spool", redis_url, config.price_stream)
        measure = SizeProbe(client, [stream.key, feed.key], store, spool)
        observer = StatusReader(stream, store, clock.microseconds, measure=measure)
        for step in (partial(migrations.apply, store), observer.begin, feed.ensure_group):
            _run_until_stopped(step, stop)
        stack.callback(store.close)  # not before: if stopped, a step still uses the connection, and closing would wait
        began = time.monotonic()
        problem = _run(config, home, servers, observer, feed, child_environ, stop, console)
        since = observer.began
        verdicts = verify(store, stream, feed, spool, since=since, recheck_after=1.0, silent_after=0.0)  # all are dead
        received = _compare(verdicts, console)
        waited = time.monotonic() - began >= FIRST_PRICE_WITHIN or not stop.is_set()
        if received == 0 and (problem or waited):
            raise NoPriceError(f"no price was received. {problem or 'The producer reported no error'}")


def _run_until_stopped(step: Callable[[], object], stop: threading.Event) -> None:
    """Run one step of the start in a thread; raise its error, or StartStoppedError if `stop` is set first."""
    running = threads.in_thread(step)
    while not running.done():
        if stop.wait(0.02):
            raise StartStoppedError
    running.result()


def _run(
    config: UpConfig,
    home: Home,
    servers: Servers,
    observer: StatusReader,
    feed: ConsumerGroup,
    environ: Mapping[str, str],
    stop: threading.Event,
    console: Console,
) -> str:
    """Start the processes, show them until the end, stop them in order: the producer, what is left, the consumers.

    Returns the producer's problem at the end, if it has one.
    """
    logs = home.data_dir / "logs"
    symbols = ",".join(config.symbols)
    options = ["--symbols", symbols, "--spool-dir", str(home.data_dir / "spool")]
    producer = ManagedProcess("producer", options, environ, logs / "producer.log")
    consumers = [
        ManagedProcess("consumer", [], environ, logs / f"consumer-{n}.log") for n in range(1, config.consumers + 1)
    ]
    page = _dashboard(home, environ, logs, console) if config.dashboard else None
    title = "tickpipe  SIMULATED prices" if home.simulated else "tickpipe  live prices"
    over = _Timer(config.seconds, observer)

    def keep_running(stop: threading.Event, *children: ManagedProcess) -> None:
        with suppress(TickpipeError):  # the view says what is away, and the next round tries again
            servers.keep_running(stop)
        for child in children:
            child.keep_running()

    try:
        producer.start()
        for child in (*consumers, *([page] if page else [])):
            child.start()
        with display(
            observer, console, title, f"Ctrl-C ends it cleanly · logs: {logs}", producer.current_problem
        ) as show:
            while not stop.wait(0.25) and not over():
                keep_running(stop, producer, *consumers)
                if page:
                    with suppress(ConfigurationError):  # prices are stored without it
                        page.keep_running()
                show()
            problem = producer.current_problem()
            console.print("stopping: the producer, then what is left to store …")
            stop_all([producer], timeout=15)
            _drain(observer, feed, lambda: keep_running(threading.Event(), *consumers), show)
    finally:
        stop_all([producer, *consumers, *([page] if page else [])], timeout=15)
    return problem


def _dashboard(home: Home, environ: Mapping[str, str], logs: Path, console: Console) -> ManagedProcess | None:
    """The page as a process of its own, its address told; None where the extra is not installed."""
    if not dashboard.installed():
        console.print("no dashboard: pip install 'tickpipe[dashboard]'", markup=False)
        return None
    port = dashboard.free_port()
    console.print(f"dashboard: http://{dashboard.HOST}:{port}", soft_wrap=True)
    simulated = ["--simulated"] if home.simulated else []
    options = ["dashboard", "--host", dashboard.HOST, "--port", str(port), *simulated]
    return ManagedProcess("tickpipe", options, environ, logs / "dashboard.log")


class _Timer:
    """Says when the run is over: `seconds` after the first price, or after waiting FIRST_PRICE_WITHIN for it."""

    def __init__(self, seconds: float | None, observer: StatusReader) -> None:
        self._seconds = math.inf if seconds is None else seconds
        self._observer = observer
        self._started = time.monotonic()
        self._first: float | None = None

    def __call__(self) -> bool:
        now = time.monotonic()
        if self._first is None and (now - self._started > FIRST_PRICE_WITHIN or self._observer.received() > 0):
            self._first = now
        return self._first is not None and now - self._first >= self._seconds


def _drain(
    observer: StatusReader, feed: ConsumerGroup, keep_running: Callable[[], None], show: Callable[[], None]
) -> None:
    """Wait until all that was received is stored, and told: the comparison rests on the feed's last words.

    Gives up, to be told by the comparison, after DRAIN_WITHIN.
    """
    until = time.monotonic() + DRAIN_WITHIN
    while time.monotonic() < until:
        try:
            if observer.left() == 0 and backlog_left(feed.backlog()) == 0:
                break
        except OutageError:
            pass  # the view says so
        keep_running()
        show()
        time.sleep(0.1)


@contextmanager
def display(
    observer: StatusReader, console: Console, title: str, footer: str, problem: Callable[[], str] = str
) -> Iterator[Callable[[], None]]:
    """Gives a function that shows the pipeline as it is: in place on a terminal, else a line now and then.

    `problem` gives the text of a problem that the observer does not see, or an empty text.
    """

    def look() -> Status:
        now = observer.look()
        return replace(now, trouble="; ".join(filter(None, [now.trouble, problem()])) or None)

    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=False) as live:
            yield lambda: live.update(
                live_view.render(look(), title=title, footer=footer, width=console.width, height=console.height),
                refresh=True,
            )
        return
    last = time.monotonic() - LINE_EVERY + 1.0

    def show() -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            console.print(live_view.line(look(), title=title), soft_wrap=True, markup=False)

    yield show


def _print_places(console: Console, home: Home, redis_url: str | None, database_url: str | None) -> None:
    """Say where things are, so that another terminal can join."""
    what = "SIMULATED prices (no API key, or --simulate)" if home.simulated else "live prices"
    console.print(f"{what}; data in {home.data_dir}", soft_wrap=True)
    if redis_url:
        socket = redis_url.removeprefix("unix://").partition("?")[0]
        console.print(f"  export REDIS_URL='{redis_url}'      # redis-cli -s {socket} XLEN prices", soft_wrap=True)
    if database_url:
        console.print(f"  export DATABASE_URL='{database_url}'      # psql \"$DATABASE_URL\"", soft_wrap=True)
    console.print(f"  export SPOOL_DIR='{home.data_dir / 'spool'}'      # tickpipe verify", soft_wrap=True)


def _compare(verdicts: Sequence[Verdict], console: Console) -> int:
    """Print received = stored for the sessions of this run; return received. Raises DifferenceError if not equal."""
    received = sum(verdict.expected for verdict in verdicts)
    stored = sum(verdict.stored for verdict in verdicts)
    dead = sum(verdict.dead_letters for verdict in verdicts)
    sound = received == stored + dead and all(verdict.sound for verdict in verdicts)
    words = f"received {received:,} {'=' if sound else '≠'} stored {stored:,}"
    console.print(words + (f" + dead letters {dead:,}" if dead else ""))
    if not sound:
        raise DifferenceError("\n".join(map(str, verdicts)))
    return received
