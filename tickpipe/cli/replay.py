"""`tickpipe replay`."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated

import typer

from common import settings
from common.duration import read_moment
from common.formatting import counted
from common.terminal import echo
from consumer.writer import Writer
from tickpipe.cli.connections import open_connections, routes
from tickpipe.cli.options import Partitions
from tickpipe.maintenance import replay as maintenance
from tickpipe.terminal.progress import progress

Since = Annotated[
    str,
    typer.Option(
        help="Only entries that were appended since then: an ISO date or datetime (UTC unless it has an offset), or an "
        "age such as 1d or 90m.",
        show_default="all",
    ),
]


def replay(
    since: Since = "",
    partitions: Partitions = "",
    price_stream: settings.PriceStream = settings.PRICE_STREAM,
    consumer_group: settings.ConsumerGroup = settings.CONSUMER_GROUP,
) -> None:
    """Store again what is still in the streams, for example after the restore of an older backup.

    Consumers keep stored entries for STREAM_KEEP. Rows that exist stay as they are. Consumers may run at the same time.
    """
    start = b"-" if not since else b"%d-0" % max(0, read_moment(since, datetime.now(UTC), "--since").timestamp() * 1000)
    store, channels = open_connections(consumer_group, price_stream, partitions)
    with closing(store), progress("storing again") as report:
        results = maintenance.replay(routes(channels), Writer(store), start, report)
    for what, result in results.items():
        echo(f"{what}: {counted(result.entries, 'entry')} in the stream, new rows: {result.rows:,}")
