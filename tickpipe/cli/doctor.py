"""`tickpipe doctor`."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Annotated

import typer

from common import cli, clock, settings
from common.database.client import DatabaseClient
from common.database.connections import each_host
from common.terminal import echo, echo_json
from tickpipe.cli.connections import open_connections, size_probe
from tickpipe.cli.options import Disk
from tickpipe.inspect.doctor import CheckContext, examine

AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON list with one object per finding.")]


def doctor(
    as_json: AsJson = False,
    price_stream: settings.PriceStream = settings.PRICE_STREAM,
    consumer_group: settings.ConsumerGroup = settings.CONSUMER_GROUP,
    spool_dir: settings.SpoolDir = None,
    disk: Disk = None,
) -> None:
    """Check the API key, Redis, consumer groups, database, schema, feed and disks. Changes nothing.

    Each finding is ok, a note, or BAD with the action to take. Exits with status 1 if a finding is BAD.
    """
    store, channels = open_connections(consumer_group, price_stream)
    with closing(store):
        probe = size_probe(store, channels, price_stream, spool_dir, disk)
        key = partial(settings.read_api_key, cli.environment())
        findings = []
        hosts = {name: DatabaseClient(url) for name, url in each_host(cli.database_url()).items()}
        for finding in examine(CheckContext(channels, store, probe, key, clock.microseconds, hosts)):
            findings.append(finding)
            if not as_json:
                echo(str(finding))
    if as_json:
        echo_json([{"state": each.state, **each._asdict()} for each in findings])
    if any(finding.state == "BAD" for finding in findings):
        raise typer.Exit(1)
