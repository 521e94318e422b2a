"""`tickpipe retention`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from common import settings
from common.errors import ConfigurationError
from common.terminal import echo
from tickpipe.cli.connections import open_connections
from tickpipe.maintenance import retention as policy
from tickpipe.terminal.progress import progress

Ticks = Annotated[
    str,
    typer.Option(help="Age to keep, for example 90d. Drops older ticks now and, on TimescaleDB, every day."),
]
Off = Annotated[bool, typer.Option("--off", help="Stop dropping ticks.")]


def retention(ticks: Ticks = "", off: Off = False) -> None:
    """Drop old ticks and keep their candles. Without an option, show the current policy. Off by default.

    `tickpipe verify` counts dropped ticks as expired. Plain PostgreSQL has no scheduler: run this command daily.
    """
    if off and ticks:
        raise ConfigurationError("--ticks and --off exclude each other: give one of them")
    store, _ = open_connections("", settings.PRICE_STREAM)
    with closing(store):
        if off:
            policy.switch_off(store)
        elif ticks:
            with progress("recording and dropping old ticks"):  # one statement, without progress figures
                policy.keep(store, policy.read_age(ticks))
        echo(*str(policy.look(store)).split("\n"))
