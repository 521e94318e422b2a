"""`tickpipe verify`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Annotated

import typer

from common import cli, settings
from common.formatting import counted
from common.terminal import echo, echo_json
from producer.spool import spool_folder
from tickpipe.cli.connections import open_connections
from tickpipe.inspect import verify as completeness
from tickpipe.inspect.reader import no_stream
from tickpipe.inspect.verdict import Verdict
from tickpipe.terminal.progress import progress

Everything = Annotated[bool, typer.Option("--all", help="Also check sessions that were verified before.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON list with one object per session.")]
RecheckAfter = Annotated[
    float,
    typer.Option("--claim-idle", envvar="CLAIM_IDLE", min=0, help="The consumers' claim interval, in seconds."),
]


def verify(
    everything: Everything = False,
    as_json: AsJson = False,
    recheck_after: RecheckAfter = 30.0,
    price_stream: settings.PriceStream = settings.PRICE_STREAM,
    consumer_group: settings.ConsumerGroup = settings.CONSUMER_GROUP,
    spool_dir: settings.SpoolDir = None,
) -> None:
    """Check, session by session, that every price received is stored exactly once.

    Exits with status 1 if a price is missing or stored twice.
    """
    store, streams = open_connections(consumer_group)
    folder = spool_folder(spool_dir, settings.redis_url(cli.environment()), price_stream)
    prices = streams(price_stream)
    with closing(store), progress("verifying") as report:
        verdicts = completeness.verify(
            store,
            prices,
            streams(f"{price_stream}:feed"),
            folder,
            everything=everything,
            recheck_after=recheck_after,
            progress=report,
        )
    if not prices.check():
        echo(f"{no_stream(prices)} Prices that wait in another stream were not searched", err=True)
    if as_json:
        echo_json([verdict.as_dict() for verdict in verdicts], default=str)
    else:
        _print(verdicts)
    if not all(verdict.sound for verdict in verdicts):
        raise typer.Exit(1)


def _print(verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        echo(*verdict.lines)
    incomplete = sum(not verdict.sound for verdict in verdicts)
    if verdicts:
        echo(f"{counted(len(verdicts), 'session')} verified, {incomplete} incomplete")
    else:
        echo("nothing new to verify: all sessions were verified before (--all checks them again)")
