"""`tickpipe tail`."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Annotated

import typer

from common import cli, clock, libpq, log, process, settings
from common.database.client import DatabaseClient
from common.duration import read_moment
from common.errors import ConfigurationError
from common.terminal import printable
from tickpipe.client.servers import find_servers
from tickpipe.client.subscription import subscribe
from tickpipe.client.symbols import known_symbols
from tickpipe.client.tick import Tick
from tickpipe.inspect.database import DatabaseReader

Symbols = Annotated[list[str] | None, typer.Argument(help="Only these symbols.", show_default="all")]
Since = Annotated[
    str,
    typer.Option(
        help="First print the ticks since then: an ISO date or datetime (UTC unless it has an offset), or an age such "
        "as 5m.",
        show_default="only new ticks",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print each tick as a JSON object in one line.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print a line of CSV for each tick, after a line of names.")]


def tail(
    symbols: Symbols = None,
    since: Since = "",
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    price_stream: settings.PriceStream = settings.PRICE_STREAM,
    consumer_group: settings.ConsumerGroup = settings.CONSUMER_GROUP,
) -> None:
    """Print ticks as they arrive, each once and in order, until Ctrl-C or until the pipe is closed.

    Without DATABASE_URL and REDIS_URL it uses the servers of a `tickpipe up` on this machine. It waits for the end of
    an outage, and then continues without a gap.
    """
    if as_json and as_csv:
        raise ConfigurationError("--json and --csv exclude each other: give one of them")
    servers = find_servers(None, None, price_stream, consumer_group, cli.environment())
    if libpq.is_embedded(servers.database_url):
        cli.remove_libpq_variables()
    log.configure("WARNING", [servers.database_url, servers.redis_url])
    database = DatabaseClient(servers.database_url, read_only=True)
    begin = read_moment(since, clock.utc(), "--since") if since else None
    names = None
    if symbols:
        with closing(database):
            names = known_symbols(symbols, DatabaseReader(database).rows)
    stop = process.stop_on_signals()
    show = _json if as_json else _csv if as_csv else _text
    if as_csv:
        sys.stdout.write(_csv_line(Tick._fields))
    for ticks in subscribe(servers, database, names, begin, stop).batches():
        _write(ticks, show)


def _write(ticks: Sequence[Tick], show: Callable[[Tick], str]) -> None:
    """Print at once: a pipe would otherwise get the ticks in blocks."""
    if ticks:
        sys.stdout.write("".join(map(show, ticks)))
    sys.stdout.flush()


def _text(tick: Tick) -> str:
    values = [f"{tick.received_at:%Y-%m-%dT%H:%M:%S.%f}Z", printable(tick.symbol), str(tick.price)]
    others = {name: getattr(tick, name) for name in ("bid", "ask", "size", "side")}
    values += [f"{name}={value}" for name, value in others.items() if value is not None]
    return " ".join(values) + "\n"


def _json(tick: Tick) -> str:
    return json.dumps({name: _plain(value) for name, value in tick._asdict().items()}) + "\n"


def _csv(tick: Tick) -> str:
    return _csv_line([_plain(value) for value in tick])


def _csv_line(values: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _plain(value: object) -> object:
    """Times as ISO text, in UTC."""
    return value.isoformat() if hasattr(value, "isoformat") else value
