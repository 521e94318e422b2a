"""`tickpipe up`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common import cli, log, process, settings
from common.symbols import read_symbols
from common.terminal import PlainConsole
from tickpipe.extras import required_extra

Symbols = Annotated[
    list[str] | None,
    typer.Option(envvar="SYMBOLS", help="Symbols to subscribe to.", show_default="eight symbols of the feed"),
]
Consumers = Annotated[int, typer.Option(min=1, max=64, help="Number of consumers.")]
Seconds = Annotated[
    float | None,
    typer.Option(
        "--for",
        min=0,
        help="Seconds to run after the first price. Then drain, compare and exit.",
        show_default="until Ctrl-C",
    ),
]
Simulate = Annotated[bool, typer.Option("--simulate", help="Use simulated prices even if an API key or a URL is set.")]
Rate = Annotated[float, typer.Option(min=0.1, help="Simulated price events per second.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="TICKPIPE_DATA_DIR",
        help="Folder of the embedded servers' data. It gets the subfolders demo/ and live/.",
        show_default="the user's data folder",
    ),
]
Dashboard = Annotated[bool, typer.Option(help="Also serve the dashboard, and print its address.")]


def up(
    symbols: Symbols = None,
    feed: settings.FeedOption = "twelvedata",
    consumers: Consumers = 2,
    seconds: Seconds = None,
    simulate: Simulate = False,
    rate: Rate = 20.0,
    data_dir: DataDir = None,
    dashboard: Dashboard = True,
    price_stream: settings.PriceStream = settings.PRICE_STREAM,
    consumer_group: settings.ConsumerGroup = settings.CONSUMER_GROUP,
) -> None:
    """Run the whole pipeline with a live view: Redis, PostgreSQL, a producer and consumers.

    With --feed coinbase, kraken or binance the prices are real, without a key. Those of twelvedata are simulated unless
    TWELVE_DATA_API_KEY is set. Without REDIS_URL or DATABASE_URL the command starts a Valkey
    or a PostgreSQL server in a folder of yours and stops it at the end. At the end the command compares the prices
    received with the prices stored, and exits with status 1 if they differ.

    Needs the extra `local`.
    """
    with required_extra("local", "tickpipe up"):
        from producer.feeds import VENDORS
        from tickpipe.local.config import UpConfig
        from tickpipe.local.run_mode import choose_run_mode
        from tickpipe.local.up import up as run
    environ = cli.environment()
    log.configure("ERROR")
    config = UpConfig(
        feed=feed,
        symbols=read_symbols(symbols or [VENDORS[feed].trial_symbols], None),
        consumers=consumers,
        seconds=seconds,
        rate=rate,
        price_stream=price_stream,
        consumer_group=consumer_group,
        dashboard=dashboard,
    )
    mode = choose_run_mode(environ, VENDORS[feed], simulate=simulate, data_dir=data_dir)
    if mode.database_url is None:
        cli.remove_libpq_variables()
    run(config, mode, environ, process.stop_on_signals(), PlainConsole())
