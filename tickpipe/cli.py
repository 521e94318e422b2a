"""The `tickpipe` command: the whole pipeline, for the person who runs it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common import cli, log, settings
from common.symbols import read_symbols
from consumer import schema
from consumer.store import PriceStore
from tickpipe import up as whole
from tickpipe.simulator import Simulator, SimulatorConfig

logger = logging.getLogger("tickpipe")

#: What `up` shows where nobody names symbols: of each kind of market some, all among Twelve Data's trial symbols.
SHOWN = "BTC/USD,ETH/USD,EUR/USD,USD/JPY,XAU/USD,AAPL,MSFT,NVDA"

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
        list[str] | None, typer.Option(envvar="SYMBOLS", help=f"What to subscribe.  [default: {SHOWN}]")
    ] = None,
    consumers: Annotated[int, typer.Option(min=1, max=64, help="How many consumers to run.")] = 2,
    seconds: Annotated[
        float | None,
        typer.Option("--for", min=0, help="End after so many seconds: drain, compare, exit.  [default: Ctrl-C ends]"),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Simulated prices, though there is a key or a URL.")
    ] = False,
    rate: Annotated[float, typer.Option(min=0.1, help="Simulated price events a second.")] = 20.0,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="TICKPIPE_DATA_DIR",
            help="Where embedded data lie, in demo/ or live/.  [default: the user's data folder]",
        ),
    ] = None,
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
    )
    whole.up(config, environ, cli.stop_on_signals(), Console(highlight=False))


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
    """Serve prices by Twelve Data's websocket protocol: a random walk, or a capture replayed."""
    log.configure("ERROR")
    stop = cli.stop_on_signals()
    simulator = Simulator(SimulatorConfig(host=host, port=port, rate=rate, capture=capture, speed=speed, seed=seed))
    simulator.start()
    typer.echo(f"serving {simulator.url}; any API key will do. Ctrl-C ends it")
    while not stop.is_set() and not simulator.wait(0.2):
        pass
    typer.echo(str(simulator.stop()))


@app.command()
def migrate() -> None:
    """Apply the schema in sql/ to DATABASE_URL. The consumer does it too, at its start; two at once are fine."""
    database_url = settings.database_url(cli.environment())
    log.configure("INFO", [database_url])
    store = PriceStore(database_url)
    done = schema.apply(store)
    store.close()
    typer.echo(f"applied: {', '.join(done)}" if done else "nothing to do: the schema is up to date")


def main() -> None:
    """The console entry point."""
    cli.run(app, "tickpipe")
