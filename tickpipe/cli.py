"""The `tickpipe` command: the whole pipeline, for the person who runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from common import cli, log, settings
from common.errors import ConfigurationError, OutageError, TickpipeError
from common.stream import Stream, connect
from common.symbols import read_symbols
from common.terminal import PlainConsole, echo, echo_json
from consumer import schema
from consumer.store import PriceStore
from producer.spool import spool_folder
from tickpipe import backfill as filling
from tickpipe import dead_letters, rest, text, view
from tickpipe import doctor as examination
from tickpipe import retention as keeping
from tickpipe import up as whole
from tickpipe import verify as completeness
from tickpipe.dashboard import HOST, PORT, DashboardConfig
from tickpipe.dashboard import serve as serve_dashboard
from tickpipe.embedded import StartStoppedError, embedded_servers
from tickpipe.progress import progress
from tickpipe.simulator import Simulator, SimulatorConfig
from tickpipe.sizes import Measure, table_and_database, watch_move
from tickpipe.status import Observer, Status, laggard, no_stream

#: What `up` shows where nobody names symbols: of each kind of market some, all among Twelve Data's trial symbols.
SHOWN = "BTC/USD,ETH/USD,EUR/USD,USD/JPY,XAU/USD,AAPL,MSFT,NVDA"

Disk = Annotated[
    Path | None,
    typer.Option(exists=True, help="A path on the database's disk.", show_default="found where its socket is here"),
]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def tickpipe() -> None:
    """A tick database that you own: live prices from a websocket, through Redis, into TimescaleDB.

    Variables without an option, since they can hold a secret: TWELVE_DATA_API_KEY, REDIS_URL, DATABASE_URL; each also
    as …_FILE, naming a file that holds it. A `.env` in the working folder is read.

    Exit status: 0 done, 1 a failure worth a retry, 2 wrong usage or configuration.
    """


@app.command()
def up(
    symbols: Annotated[
        list[str] | None, typer.Option(envvar="SYMBOLS", help="What to subscribe.", show_default=SHOWN)
    ] = None,
    consumers: Annotated[int, typer.Option(min=1, max=64, help="How many consumers to run.")] = 2,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--for",
            min=0,
            help="End so many seconds after the first price: drain, compare, exit.",
            show_default="until Ctrl-C",
        ),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Simulated prices, though there is a key or a URL.")
    ] = False,
    rate: Annotated[float, typer.Option(min=0.1, help="Simulated price events a second.")] = 20.0,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="TICKPIPE_DATA_DIR",
            help="Where embedded data lie, in demo/ or live/.",
            show_default="the user's data folder",
        ),
    ] = None,
    dashboard: Annotated[bool, typer.Option(help="Serve the dashboard, too, and tell its address.")] = True,
    price_stream: settings.PriceStream = "prices",
    consumer_group: settings.ConsumerGroup = "timescale",
) -> None:
    """Run the whole pipeline: Redis, PostgreSQL, a producer and consumers, with a live view.

    Without TWELVE_DATA_API_KEY the prices are simulated. Without REDIS_URL or DATABASE_URL a real Valkey or
    PostgreSQL is started for it, in a folder of yours, and stopped at the end. Prints received = stored; exits 1
    where they differ.
    """
    environ = cli.environment()
    log.configure("ERROR")
    config = whole.UpConfig(
        symbols=read_symbols(symbols or [SHOWN], None),
        consumers=consumers,
        seconds=seconds,
        simulate=simulate,
        rate=rate,
        data_dir=data_dir,
        price_stream=price_stream,
        consumer_group=consumer_group,
        dashboard=dashboard,
    )
    home = whole.choose_home(config, environ)
    if home.database_url is None:
        cli.remove_libpq_variables()
    whole.up(config, home, environ, cli.stop_on_signals(), PlainConsole())


@app.command()
def servers(
    folder: Annotated[Path, typer.Argument(help="A folder of `up`, its demo/ or live/; or a new one.")],
) -> None:
    """Run the embedded Redis and PostgreSQL alone, to look, dump or restore; prints their URLs, Ctrl-C ends them."""
    log.configure("ERROR")
    cli.remove_libpq_variables()
    stop = cli.stop_on_signals()
    with suppress(StartStoppedError), embedded_servers(folder, stop=stop) as running:
        echo(f"export REDIS_URL='{running.redis_url}'", f"export DATABASE_URL='{running.database_url}'")
        while not stop.wait(0.5):
            running.keep_running(stop)


@app.command()
def simulate(
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0: any free port.")] = 8765,
    rate: Annotated[float, typer.Option(min=0.001, help="Price events a second, on each connection.")] = 10.0,
    capture: Annotated[
        Path | None,
        typer.Option(help='Replay this file of lines {"at": seconds, "event": {…}} instead, once, and end.'),
    ] = None,
    speed: Annotated[float, typer.Option(min=0, help="Of the replay: 1 as recorded, 0 as fast as possible.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes the random walk repeatable.")] = None,
) -> None:
    """Serve prices by Twelve Data's websocket protocol: a random walk, or a capture replayed.

    On the same port, its REST call `time_series` is answered with one-minute bars, of another random walk.
    """
    log.configure("ERROR")
    stop = cli.stop_on_signals()
    simulator = Simulator(SimulatorConfig(host=host, port=port, rate=rate, capture=capture, speed=speed, seed=seed))
    simulator.start()
    echo(f"serving {simulator.url}, bars at {simulator.rest_url}; any API key will do. Ctrl-C ends it")
    while not stop.is_set() and not simulator.wait(0.2):
        pass
    echo(str(simulator.stop()))


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Keep looking, as `up` does, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One look, as JSON.")] = False,
    price_stream: settings.PriceStream = "prices",
    consumer_group: settings.ConsumerGroup = "timescale",
    spool_dir: settings.SpoolDir = None,
    disk: Disk = None,
) -> None:
    """Show backlog, groups, consumers, the newest tick of each symbol; sizes, their growth, when the disk is full."""
    store, streams = _connections(consumer_group)
    measure = _measure(store, price_stream, spool_dir, disk)
    observer = Observer(streams(price_stream), store, cli.microseconds, began=0, measure=measure)
    console = PlainConsole()
    if as_json:
        now = observer.look()
        # A group's figures go by their names; and one look tells no rate: 0.0 would be a false one.
        groups = {name: group._asdict() for name, group in now.groups.items()}
        echo_json({**asdict(now), "groups": groups, "rows_per_second": None})
        if now.trouble:
            raise OutageError(now.trouble)
    elif watch:
        stop = cli.stop_on_signals()
        with whole.display(observer, console, f"tickpipe  {price_stream}", "Ctrl-C ends the view") as show:
            while not stop.wait(0.5):
                show()
    else:
        _print_status(observer.look())
    store.close()


def _print_status(now: Status) -> None:
    if now.trouble:
        raise OutageError(now.trouble)
    if now.note:
        echo(now.note)
    echo(view.standing(now))
    if now.sizes:
        echo(view.sizes(now.sizes))
        rows, over = now.sizes.table_rows_per_day_estimated, text.span(now.sizes.estimated_over_seconds)
        words = f"{rows:,.0f} rows a day, by the feed's last {over}" if rows is not None else "growth not known yet"
        echo(f"about {now.sizes.table_rows_estimated:,} rows; {words}")
    for name, group in now.groups.items():
        holds = "  holds back trimming" if name == laggard(now.groups) else ""
        members = view.members(group.consumers, group.silent)
        echo(f"group {name}: {group.lag:,} unread, {group.pending:,} pending, {members}{holds}")
    for symbol in now.symbols:
        echo(f"{symbol.symbol}: {symbol.price}, {view.age(symbol.age)} ago")


@app.command()
def dashboard(
    host: Annotated[
        str, typer.Option(envvar="DASHBOARD_HOST", help="Address to listen on. The dashboard has no authentication.")
    ] = HOST,
    port: Annotated[
        int, typer.Option(envvar="DASHBOARD_PORT", min=0, max=65535, help="Where to listen; 0: any free port.")
    ] = PORT,
    simulated: Annotated[bool, typer.Option("--simulated", help="Say on the page that the prices are.")] = False,
    allowed_hosts: settings.AllowedHosts = "",
    price_stream: settings.PriceStream = "prices",
    consumer_group: settings.ConsumerGroup = "timescale",
) -> None:
    """Serve a page with live candles, gaps and the pipeline's health. It reads only. Needs the extra `dashboard`."""
    environ = cli.environment()
    config = DashboardConfig(
        redis_url=settings.redis_url(environ),
        database_url=cli.database_url(),
        price_stream=price_stream,
        consumer_group=consumer_group,
        host=host,
        port=port,
        simulated=simulated,
        allowed_hosts=settings.read_hosts(allowed_hosts),
    )
    log.configure("WARNING", [config.redis_url, config.database_url])
    serve_dashboard(config, cli.stop_on_signals(), lambda url: echo(f"dashboard: {url}  Ctrl-C ends it"))


@app.command()
def verify(
    everything: Annotated[bool, typer.Option("--all", help="Sessions that were found complete before, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, a session each.")] = False,
    recheck_after: Annotated[
        float,
        typer.Option("--claim-idle", envvar="CLAIM_IDLE", min=0, help="The consumers' claim interval, in seconds."),
    ] = 30.0,
    price_stream: settings.PriceStream = "prices",
    consumer_group: settings.ConsumerGroup = "timescale",
    spool_dir: settings.SpoolDir = None,
) -> None:
    """Prove, session by session, that every price received is stored, once. Exits 1 where one is missing or doubled."""
    store, streams = _connections(consumer_group)
    folder = spool_folder(spool_dir, settings.redis_url(cli.environment()), price_stream)
    with progress("verifying") as tell:
        verdicts = completeness.verify(
            store,
            streams(price_stream),
            streams(f"{price_stream}:feed"),
            folder,
            everything=everything,
            recheck_after=recheck_after,
            progress=tell,
        )
    store.close()
    bad = [verdict for verdict in verdicts if not verdict.sound]
    if not streams(price_stream).check():
        echo(f"{no_stream(streams(price_stream))} What waits in another was not looked for", err=True)
    if as_json:
        echo_json([verdict.as_dict() for verdict in verdicts], default=str)
    else:
        for verdict in verdicts:
            echo(*verdict.lines)
        nothing = "nothing new to verify: all sessions were found complete before (--all looks at them again)"
        echo(f"{len(verdicts)} sessions verified, {len(bad)} incomplete" if verdicts else nothing)
    if bad:
        raise typer.Exit(1)


letters = typer.Typer(no_args_is_help=True, help="What could not be stored, and why; put it back.")
app.add_typer(letters, name="dead-letters")

LetterId = Annotated[int | None, typer.Option("--id", help="Only this one.")]
LetterSession = Annotated[int | None, typer.Option("--session", help="Only of this session.")]
LetterReason = Annotated[str | None, typer.Option("--reason", help="Only where the reason contains this.")]


@letters.command("list")
def list_letters(
    letter: LetterId = None,
    session: LetterSession = None,
    reason: LetterReason = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the oldest first.")] = 100,
) -> None:
    """List dead letters, the oldest first: number, when, where it came from, why, and the entry itself."""
    store, _ = _connections("")
    found = dead_letters.find(store, dead_letters.Filter(id=letter, session=session, reason=reason), limit=limit)
    store.close()
    for one in found:
        echo(f"{one.id}  {one.at:%Y-%m-%d %H:%M:%S}  {one.stream} {one.entry_id}  {one.reason}", f"    {one.text}")
    echo(f"{len(found)} dead letters" + (" or more" if len(found) == limit else ""))


@letters.command("retry")
def retry_letters(letter: LetterId = None, session: LetterSession = None, reason: LetterReason = None) -> None:
    """Put dead letters back into their streams: all, or those of a filter. What is bad still comes back here."""
    store, streams = _connections("")
    wanted = dead_letters.Filter(id=letter, session=session, reason=reason)
    done, total = 0, dead_letters.count(store, wanted)
    with progress("putting dead letters back") as tell:
        for count in dead_letters.retry(store, streams, wanted):
            done += count
            tell(done, total)
    echo(f"{done} dead letters put back")
    store.close()


def _connections(group: str) -> tuple[PriceStore, Callable[[str], Stream]]:
    """The database and the streams by name, of this environment."""
    environ = cli.environment()
    redis_url, database_url = settings.redis_url(environ), cli.database_url()
    log.configure("ERROR", [redis_url, database_url])
    client = connect(redis_url)
    return PriceStore(database_url), lambda name: Stream(client, name, group, "tickpipe")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, a finding each.")] = False,
    price_stream: settings.PriceStream = "prices",
    consumer_group: settings.ConsumerGroup = "timescale",
    spool_dir: settings.SpoolDir = None,
    disk: Disk = None,
) -> None:
    """Check key, Redis, groups, database, schema, feed and disks for what the promises rest on. It changes nothing.

    Each finding is ok, a note, or BAD with what to do; exits 1 where one is BAD.
    """
    store, streams = _connections(consumer_group)
    measure = _measure(store, price_stream, spool_dir, disk)
    both = streams(price_stream), streams(f"{price_stream}:feed")
    key = partial(settings.read_api_key, cli.environment())
    findings = []
    for finding in examination.examine(
        examination.Patient(measure.client, both, store, measure, key, cli.microseconds)
    ):
        findings.append(finding)
        if not as_json:
            echo(str(finding))
    if as_json:
        echo_json([{"state": each.state, **each._asdict()} for each in findings])
    store.close()
    if any(finding.state == "BAD" for finding in findings):
        raise typer.Exit(1)


def _measure(store: PriceStore, price_stream: str, spool_dir: Path | None, disk: Path | None) -> Measure:
    url = settings.redis_url(cli.environment())
    spool = spool_folder(spool_dir, url, price_stream)
    return Measure(connect(url), [price_stream, f"{price_stream}:feed"], store, spool, disk)


@app.command()
def migrate(
    to_timescaledb: Annotated[
        bool, typer.Option("--to-timescaledb", help="Move ticks from an ordinary table to a hypertable; locks it.")
    ] = False,
    chunk_interval: Annotated[
        str,
        typer.Option(help="Of a hypertable's new chunks, as '6 hours'.", show_default="as it is; at first 1 day"),
    ] = "",
) -> None:
    """Apply the schema in sql/ to DATABASE_URL. The consumer does it too, at its start; two at once are fine."""
    database_url = cli.database_url()
    store = PriceStore(database_url)
    with progress("applying sql/", text.size) as tell:
        log.configure("INFO", [database_url])  # here: so its lines pass above what is shown
        if to_timescaledb and sys.stderr.isatty():
            cli.in_thread(watch_move, PriceStore(database_url), *table_and_database(store), tell)
        done = schema.apply(store, to_timescaledb=to_timescaledb, chunk_interval=chunk_interval)
    store.close()
    echo(f"applied: {', '.join(done)}" if done else "nothing to do: the schema is up to date")


@app.command()
def retention(
    ticks: Annotated[
        str, typer.Option(help="Keep ticks so long, as 90d: older ones go now, and every day on TimescaleDB.")
    ] = "",
    off: Annotated[bool, typer.Option("--off", help="Drop no more ticks.")] = False,
) -> None:
    """Drop old ticks, never candles; without an option, tell what is set. Off at first.

    `tickpipe verify` counts what was dropped as expired. Plain PostgreSQL has no scheduler: run this daily.
    """
    if off and ticks:
        raise ConfigurationError("--ticks and --off exclude each other")
    store, _ = _connections("")
    if off:
        keeping.switch_off(store)
    elif ticks:
        with progress("recording and dropping old ticks"):  # one statement: how far it is, the database does not tell
            keeping.keep(store, keeping.read_age(ticks))
    echo(*str(keeping.look(store)).split("\n"))
    store.close()


@app.command()
def backfill(
    since: Annotated[
        str, typer.Option(help="From when on: a date or a datetime, of UTC where it names no zone, or an age as 30d.")
    ] = "7d",
    symbols: Annotated[list[str] | None, typer.Option(help="Only these.", show_default="all that had a gap")] = None,
    credits_per_minute: Annotated[
        int, typer.Option(envvar="CREDITS_PER_MINUTE", min=1, help="What your plan has: a call costs one, Basic has 8.")
    ] = 8,
    rest_url: Annotated[
        str, typer.Option(envvar="TWELVE_DATA_REST_URL", help="Whom to ask for bars.")
    ] = rest.DEFAULT_URL,
) -> None:
    """Fill the gaps of the feed with the vendor's one-minute bars: candles_1m_filled shows them beside candles_1m.

    Needs TWELVE_DATA_API_KEY. May be stopped and run again: nothing is asked for twice. Exits 1 where a symbol is
    refused, or the vendor away.
    """
    environ = cli.environment()
    key, database_url = settings.api_key(environ)(), cli.database_url()
    now, stop, errors = datetime.now(UTC), cli.stop_on_signals(), PlainConsole(stderr=True)
    begin = filling.read_since(since, now)
    only = (
        [part for each in read_symbols(symbols, None) for part in (each, each.partition(":")[0])] if symbols else None
    )
    tally, pace = filling.Tally(), rest.Pace(credits_per_minute, stop)
    with (
        closing(PriceStore(database_url)) as store,
        closing(rest.Rest(rest_url, key, environ)) as vendor,
        errors.status("looking for gaps …") as shown,  # silent where stderr is no terminal
    ):
        log.configure("WARNING", [key, database_url])  # here: so its lines pass above what is shown
        gaps, done = filling.read(store)
        calls = list(filling.plan([gap for gap in gaps if not only or gap.symbol in only], done, begin, now))
        total = len({call.symbol for call in calls})

        def progress(symbols_left: int, calls_left: int) -> None:
            shown.update(
                f"{total - symbols_left} of {total} symbols done, {calls_left} calls left, "
                f"about {(calls_left - 1) // credits_per_minute + 1} min"
            )

        try:
            filling.run(
                calls,
                lambda call: pace.ask(partial(vendor.bars, call.symbol, call.exchange, call.since, call.until)),
                partial(filling.keep, store, now=now),
                tally,
                progress,
            )
        finally:
            shown.stop()
            echo(str(tally))
    if tally.refused:
        raise TickpipeError(f"Twelve Data gives no bars of {', '.join(tally.refused)}: name the others with --symbols")


def main() -> None:
    """The console entry point."""
    cli.run(app, "tickpipe")
