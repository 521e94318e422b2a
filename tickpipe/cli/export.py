"""`tickpipe export`."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from common import cli, log
from common.database.client import DatabaseClient
from common.errors import ConfigurationError
from common.terminal import echo
from tickpipe.cli.options import read_span
from tickpipe.extras import required_extra
from tickpipe.terminal.progress import progress

Since = Annotated[
    str,
    typer.Option(
        help="Only ticks from this time on: an ISO date or datetime (UTC unless it has an offset), or an age such as "
        "30d.",
        show_default="all",
    ),
]
Until = Annotated[str, typer.Option(help="Only ticks before this time, written in the same way.", show_default="now")]
Target = Annotated[
    str, typer.Option("--to", help="A folder, or a URL such as s3://bucket/folder?endpoint_override=host:port.")
]
FileFormat = Annotated[Literal["parquet", "csv"], typer.Option("--format", help="parquet, or csv with gzip.")]


def export(target: Target = "", since: Since = "", until: Until = "", form: FileFormat = "parquet") -> None:
    """Export ticks to files: one for each symbol and UTC day, in the layout that pandas, Polars and DuckDB read.

    Each file is compared with the database. You can stop the command and run it again: it keeps complete files.

    Needs the extra `client`. Exits with status 1 if a file and the database differ.
    """
    if not target:
        raise ConfigurationError("name a folder or a URL: tickpipe export --to FOLDER")
    with required_extra("client", "tickpipe export"):
        from tickpipe.files.export import ExportResult, export, session_lines
        from tickpipe.files.storage import Storage
    begin, end = read_span(since, until, datetime.now(UTC))
    database_url = cli.database_url()
    storage, result = Storage(target), ExportResult()
    with closing(DatabaseClient(database_url, read_only=True)) as store:
        with progress("looking for ticks") as report, storage.locked():
            log.configure("WARNING", [database_url])
            try:
                export(store, storage, begin, end, form, result, report)
            finally:
                echo(str(result))
        echo(*session_lines(store, result.sessions))
