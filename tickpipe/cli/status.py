"""`tickpipe status`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from common import clock, process, settings
from common.errors import OutageError
from common.terminal import PlainConsole, echo, echo_json, printable
from tickpipe import formatting
from tickpipe.cli.connections import open_connections, size_probe
from tickpipe.cli.options import Disk
from tickpipe.inspect.database import DatabaseReader
from tickpipe.inspect.reader import StatusReader
from tickpipe.inspect.snapshot import Snapshot, laggard
from tickpipe.inspect.symbols import SymbolReader
from tickpipe.terminal import live_view
from tickpipe.terminal.display import display

Watch = Annotated[bool, typer.Option("--watch", help="Refresh the view until Ctrl-C, as `tickpipe up` does.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one snapshot as JSON.")]


def status(
    watch: Watch = False,
    as_json: AsJson = False,
    price_stream: settings.PriceStream = settings.PRICE_STREAM,
    consumer_group: settings.ConsumerGroup = settings.CONSUMER_GROUP,
    spool_dir: settings.SpoolDir = None,
    disk: Disk = None,
) -> None:
    """Show backlog, consumer groups, the newest tick of each symbol, sizes, growth and when the disk will be full."""
    store, channels = open_connections(consumer_group, price_stream)
    with closing(store):
        probe = size_probe(store, channels, price_stream, spool_dir, disk)
        symbols = SymbolReader(DatabaseReader(store)).statuses
        reader = StatusReader(channels, clock.microseconds, began=0, symbols=symbols, sizes=probe)
        if as_json:
            _print_json(reader.read())
        elif watch:
            _watch(reader, f"tickpipe  {price_stream}")
        else:
            _print(reader.read())


def _watch(reader: StatusReader, title: str) -> None:
    stop = process.stop_on_signals()
    with display(reader, PlainConsole(), title, "Press Ctrl-C to exit") as refresh:
        while not stop.wait(0.5):
            refresh()


def _print_json(snapshot: Snapshot) -> None:
    echo_json(snapshot.as_dict())
    if snapshot.error:
        raise OutageError(snapshot.error)


def _print(snapshot: Snapshot) -> None:
    if snapshot.error:
        raise OutageError(snapshot.error)
    if snapshot.note:
        echo(snapshot.note)
    echo(live_view.momentary_figures(snapshot))
    if snapshot.sizes:
        echo(str(snapshot.sizes))
        rate, period = snapshot.sizes.table_rows_per_day_estimated, snapshot.sizes.estimated_over_seconds
        growth = "growth unknown" if rate is None else f"{rate:,.0f} rows a day over the last {formatting.span(period)}"
        echo(f"about {snapshot.sizes.table_rows_estimated:,} rows; {growth}")
    for feed, holder in snapshot.producers.items():
        echo(f"producer {printable(holder)} is active for the feed {printable(feed)}")
    for name, group in snapshot.groups.items():
        suffix = "  delays trimming" if name == laggard(snapshot.groups) else ""
        members = formatting.consumers(group.consumers, group.idle)
        echo(f"group {name}: {group.lag:,} unread, {group.pending:,} pending, {members}{suffix}")
    for key, backlog in snapshot.channels.items() if len(snapshot.channels) > 1 else ():
        echo(f"channel {key}: {backlog.lag:,} unread, {backlog.pending:,} pending")
    for symbol in snapshot.symbols:
        echo(f"{symbol.symbol}: {symbol.price}, {live_view.age(symbol.age)} ago")
