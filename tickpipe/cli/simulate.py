"""`tickpipe simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common import cli, clock, log, process, settings
from common.database.client import DatabaseClient
from common.errors import ConfigurationError
from common.terminal import echo
from tickpipe.cli.options import read_span
from tickpipe.extras import required_extra

if TYPE_CHECKING:
    from tickpipe.simulator.local_server import LocalServer
    from tickpipe.simulator.stored import StoredPrices

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free port.")]
Rate = Annotated[
    float,
    typer.Option(min=0.001, help="Price events per second on each connection; of an exchange: trades of each symbol."),
]
CaptureFile = Annotated[
    Path | None,
    typer.Option(help='twelvedata: replay this file once and exit. Each line is {"at": seconds, "event": {…}}.'),
]
ReplayFile = Annotated[
    Path | None,
    typer.Option(help="Exchanges: replay this recorded session. Each message is a line: seconds, a colon, the JSON."),
]
FromDatabase = Annotated[
    bool, typer.Option("--from-database", help="twelvedata: replay the ticks in DATABASE_URL once and exit.")
]
Since = Annotated[
    str, typer.Option(help="With --from-database: the first time, an ISO date or datetime, or an age such as 1d.")
]
Until = Annotated[str, typer.Option(help="With --from-database: the end of the ticks.", show_default="now")]
Speed = Annotated[float, typer.Option(min=0, help="Speed of the replay: 1 as recorded, 0 as fast as possible.")]
Seed = Annotated[int | None, typer.Option(help="Seed, for repeatable prices.")]
Drop = Annotated[float, typer.Option(min=0, max=1, help="Exchanges: share of the trades that are not sent.")]
Repeat = Annotated[float, typer.Option(min=0, max=1, help="Exchanges: share of the trades that are sent twice.")]
Delay = Annotated[
    float, typer.Option(min=0, max=1, help="Exchanges: share of the trades that are sent after the next one.")
]
CloseAfter = Annotated[
    float | None, typer.Option(min=0.1, help="Exchanges: close each connection after this many seconds.")
]
ShutdownNotice = Annotated[
    float | None,
    typer.Option(min=0, help="binance: send serverShutdown this many seconds before the close of --close-after."),
]
Refuse = Annotated[
    int | None, typer.Option(help="Exchanges: refuse each websocket with this HTTP status, such as 451.")
]
RequestsPerSecond = Annotated[
    int | None, typer.Option(min=1, help="Exchanges: answer further REST requests with HTTP status 429.")
]


def simulate(
    feed: settings.FeedOption = "twelvedata",
    host: Host = "127.0.0.1",
    port: Port = 8765,
    rate: Rate = 10.0,
    capture: CaptureFile = None,
    replay: ReplayFile = None,
    from_database: FromDatabase = False,
    since: Since = "1d",
    until: Until = "",
    speed: Speed = 1.0,
    seed: Seed = None,
    drop: Drop = 0.0,
    repeat: Repeat = 0.0,
    delay: Delay = 0.0,
    close_after: CloseAfter = None,
    shutdown_notice: ShutdownNotice = None,
    refuse: Refuse = None,
    requests_per_second: RequestsPerSecond = None,
) -> None:
    """Serve prices over the websocket protocol of a feed: random ones, or the replay of a file or of stored ticks.

    The same port also serves REST calls: `time_series` of Twelve Data, with one-minute bars of a separate random walk,
    or an exchange's requests for trades by number, which have every trade.

    Needs the extra `local`.
    """
    with required_extra("local", "tickpipe simulate"):
        from tickpipe.simulator.config import ExchangeConfig, SimulatorConfig
        from tickpipe.simulator.exchange import ExchangeSimulator
        from tickpipe.simulator.server import Simulator
    if feed == "twelvedata":
        given = {
            "--replay": replay, "--drop": drop, "--repeat": repeat, "--delay": delay, "--close-after": close_after,
            "--shutdown-notice": shutdown_notice, "--refuse": refuse, "--requests-per-second": requests_per_second,
        }  # fmt: skip
        for option in (option for option, value in given.items() if value):
            raise ConfigurationError(f"{option} needs an exchange: add --feed coinbase, kraken or binance")
        if from_database and capture:
            raise ConfigurationError("--capture and --from-database exclude each other: give one of them")
        simulator: LocalServer = Simulator(
            SimulatorConfig(host=host, port=port, rate=rate, capture=capture, speed=speed, seed=seed),
            recorded=_stored(since, until) if from_database else None,
        )
    elif capture:
        raise ConfigurationError(f"--capture needs --feed twelvedata; to replay a session of {feed}, use --replay")
    elif from_database:
        raise ConfigurationError("--from-database needs --feed twelvedata")
    else:
        simulator = ExchangeSimulator(
            ExchangeConfig(
                feed=feed, host=host, port=port, rate=rate, replay=replay, speed=speed, seed=seed, drop=drop,
                repeat=repeat, delay=delay, close_after=close_after, shutdown_notice=shutdown_notice, refuse=refuse,
                requests_per_second=requests_per_second,
            )
        )  # fmt: skip
    log.configure("ERROR")
    stop = process.stop_on_signals()
    simulator.start()
    echo(_hint(feed, simulator.url, simulator.rest_url))
    # After the replay of a session, an exchange still answers requests for its trades.
    while not stop.is_set() and (not simulator.wait(0.2) or replay):
        stop.wait(0.2)
    echo(str(simulator.stop()))


def _stored(since: str, until: str) -> StoredPrices:
    from tickpipe.simulator.stored import StoredPrices

    begin, end = read_span(since, until, clock.utc())
    return StoredPrices(DatabaseClient(cli.database_url(), read_only=True), begin, end)


def _hint(feed: str, url: str, rest_url: str) -> str:
    """How to connect."""
    if feed == "twelvedata":
        return f"serving {url}, bars at {rest_url}; any API key is accepted. Press Ctrl-C to stop"
    return (
        f"serving {feed} at {url}, trades by number at {rest_url}. Connect with: producer --feed {feed} --url {url}; "
        f"tickpipe backfill --feed {feed} --rest-url {rest_url}. Press Ctrl-C to stop"
    )
