"""`tickpipe retention`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from common import settings
from common.database.client import DatabaseClient
from common.errors import ConfigurationError
from common.terminal import echo
from tickpipe.cli.connections import open_connections
from tickpipe.extras import required_extra
from tickpipe.maintenance import retention as policy
from tickpipe.terminal.progress import progress

Ticks = Annotated[
    str,
    typer.Option(help="Age to keep, for example 90d. Drops older ticks now and, on TimescaleDB, every day."),
]
Archive = Annotated[
    str,
    typer.Option(
        help="Folder or URL to export the ticks to, as `tickpipe export --to`, before they are dropped. Nothing is "
        "dropped every day: run the command daily."
    ),
]
Off = Annotated[bool, typer.Option("--off", help="Stop dropping ticks.")]


def retention(ticks: Ticks = "", archive: Archive = "", off: Off = False) -> None:
    """Drop old ticks and keep their candles. Without an option, show the current policy. Off by default.

    `tickpipe verify` counts dropped ticks as expired. Plain PostgreSQL has no scheduler: run this command daily.

    --archive needs the extra `client`. Ticks are dropped only if the files of the archive have all of them.
    """
    if off and (ticks or archive):
        raise ConfigurationError("--off excludes --ticks and --archive: give one of them")
    if archive and not ticks:
        raise ConfigurationError("--archive needs an age: tickpipe retention --ticks 90d --archive FOLDER")
    store, _ = open_connections("", settings.PRICE_STREAM)
    with closing(store):
        if off:
            policy.switch_off(store)
        elif archive:
            _archive(store, ticks, archive)
        elif ticks:
            with progress("recording and dropping old ticks"):  # one statement, without progress figures
                policy.keep(store, policy.read_age(ticks))
        first, *others = str(policy.look(store)).split("\n")
        if archive:
            first = "ticks are archived and dropped only when this command runs: run it daily"
        echo(first, *others)


def _archive(store: DatabaseClient, ticks: str, place: str) -> None:
    with required_extra("client", "tickpipe retention --archive"):
        from tickpipe.files.archive import archive
        from tickpipe.files.export import ExportResult
        from tickpipe.files.storage import Storage
    age, storage, result = policy.read_age(ticks), Storage(place), ExportResult()
    with progress("looking for old ticks") as report, storage.locked():
        try:
            archive(store, storage, age, result, report)
        finally:
            echo(f"archive: {result}")
