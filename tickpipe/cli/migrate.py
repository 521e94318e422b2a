"""`tickpipe migrate`."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Annotated

import typer

from common import cli, log, threads
from common.database import migrations
from common.database.client import DatabaseClient
from common.terminal import echo
from tickpipe.inspect.sizes import table_and_database, watch_move
from tickpipe.terminal.progress import progress

ToTimescaleDB = Annotated[
    bool,
    typer.Option("--to-timescaledb", help="Convert a regular table of ticks into a hypertable. Locks the table."),
]
ChunkInterval = Annotated[
    str,
    typer.Option(
        help="Interval of the hypertable's new chunks, for example '6 hours'.",
        show_default="unchanged; 1 day for a new hypertable",
    ),
]


def migrate(to_timescaledb: ToTimescaleDB = False, chunk_interval: ChunkInterval = "") -> None:
    """Apply the SQL migrations to DATABASE_URL. Consumers also apply them when they start; both may run at once."""
    database_url = cli.database_url()
    with closing(DatabaseClient(database_url)) as store, progress("applying migrations", unit="bytes") as report:
        log.configure("INFO", [database_url])  # after the progress display has started, so that log lines go above it
        if to_timescaledb and sys.stderr.isatty():
            threads.in_thread(watch_move, DatabaseClient(database_url), *table_and_database(store), report)
        done = migrations.apply(store, to_timescaledb=to_timescaledb, chunk_interval=chunk_interval)
    echo(f"applied: {', '.join(done)}" if done else "nothing to do: the schema is up to date")
