"""`tickpipe verify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Annotated

import typer

from common import cli, settings
from common.database.client import DatabaseClient
from common.database.connections import database_name
from common.errors import ConfigurationError
from common.formatting import counted
from common.terminal import echo, echo_json, printable
from consumer.writer import Writer
from producer.spool_folder import channel_folders, spool_folder, taken_over
from tickpipe.cli.connections import open_channels, routes
from tickpipe.cli.options import Partitions
from tickpipe.inspect import verify as completeness
from tickpipe.inspect.reader import no_stream
from tickpipe.inspect.verdict import Verdict
from tickpipe.maintenance import replay
from tickpipe.terminal.progress import progress

Everything = Annotated[bool, typer.Option("--all", help="Also check sessions that were verified before.")]
Repair = Annotated[
    bool,
    typer.Option("--repair", help="First store again what is missing, from streams, spools and dead letters."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON list with one object per session.")]
RecheckAfter = Annotated[
    float,
    typer.Option(
        "--claim-idle", envvar="CLAIM_IDLE", min=0, max=86_400, help="The consumers' claim interval, in seconds."
    ),
]


def verify(
    everything: Everything = False,
    repair: Repair = False,
    as_json: AsJson = False,
    recheck_after: RecheckAfter = 30.0,
    partitions: Partitions = "",
    price_stream: settings.PriceStream = settings.PRICE_STREAM,
    consumer_group: settings.ConsumerGroup = settings.CONSUMER_GROUP,
    spool_dir: settings.SpoolDir = None,
) -> None:
    """Check, session by session, that every price received is stored exactly once.

    DATABASE_URLS names several databases, separated by blanks, if each stores some of the channels.

    Exits with status 1 if a price is missing or stored twice.
    """
    urls = cli.database_urls()
    if repair and len(urls) > 1:
        raise ConfigurationError(
            "repair one database at a time: set DATABASE_URL instead of DATABASE_URLS, and name its channels with "
            "--partitions"
        )
    folder = spool_folder(spool_dir, settings.redis_url(cli.environment()), price_stream)
    channels = open_channels(consumer_group, price_stream, urls, partitions)
    streams = channels.prices(), channels.feed()
    found: Counter[str] = Counter()
    verdicts: list[tuple[str, list[Verdict]]] = []  # a name may occur twice: two services, or two schemas
    with progress("verifying") as report:
        for url in urls:
            with closing(DatabaseClient(url)) as store:
                check = partial(
                    completeness.verify, store, *streams, folder, channels=channels.only, everything=everything,
                    recheck_after=recheck_after,
                )  # fmt: skip
                if repair:
                    all_routes, writer = routes(channels), Writer(store)
                    replay.replay([{"feed": each["feed"]} for each in all_routes], writer)  # sessions may be missing
                    folders = channel_folders(folder, price_stream)
                    verified = check(progress=report)
                    until = partial(taken_over, channels.single)
                    results = replay.repair(all_routes, writer, store, folders, verified, report, until)
                    found.update({place: result.rows for place, result in results.items()})
                verdicts.append((database_name(url), check(progress=report)))
    for place, rows in found.items():
        echo(f"repaired from the {place}: {counted(rows, 'row')}", err=as_json)
    if not any(stream.check() for stream in streams[0]):
        echo(f"{no_stream(channels.single)} Prices that wait in another stream were not searched", err=True)
    if as_json:
        several = len(urls) > 1
        echo_json(
            [
                {"database": name, **verdict.as_dict()} if several else verdict.as_dict()
                for name, each in verdicts
                for verdict in each
            ],
            default=str,
        )
    else:
        for name, each in verdicts:
            if len(urls) > 1:
                echo(f"database {printable(name)}")
            _print(each)
    if not all(verdict.sound for _, each in verdicts for verdict in each):
        raise typer.Exit(1)


def _print(verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        echo(*verdict.lines)
    incomplete = sum(not verdict.sound for verdict in verdicts)
    if verdicts:
        echo(f"{counted(len(verdicts), 'session')} verified, {incomplete} incomplete")
    else:
        echo("nothing new to verify: all sessions were verified before (--all checks them again)")
