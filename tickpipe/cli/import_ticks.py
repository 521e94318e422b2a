"""`tickpipe import`."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from common import cli, clock, log, settings, urls
from common.database.client import DatabaseClient
from common.database.connections import has_password
from common.errors import ConfigurationError
from common.settings import Secret
from common.terminal import echo
from tickpipe.files.columns import read_columns
from tickpipe.files.importing import Importer
from tickpipe.files.table import find_table, read_table
from tickpipe.terminal.progress import progress

TableName = Annotated[
    str, typer.Option("--table", help="A table of prices in the database, such as that of TimescaleDB's tutorial.")
]
Source = Annotated[
    str,
    typer.Option(
        "--from",
        help="URL of the database with this table, without a password.",
        show_default="IMPORT_DATABASE_URL, or DATABASE_URL",
    ),
]
Columns = Annotated[
    str,
    typer.Option(help="Other names of the columns, for example time=ts,price=last.", show_default="the same names"),
]
Symbol = Annotated[str, typer.Option(help="The symbol of all rows, if they have no column for it.")]


def import_ticks(table: TableName = "", source: Source = "", columns: Columns = "", symbol: Symbol = "") -> None:
    """Store the prices of another table.

    They become sessions of their own, which `tickpipe verify` checks. Rows that are not prices, and exact doubles, are
    counted with the reason. You can stop the command and run it again: it stores nothing twice.
    """
    if not table:
        raise ConfigurationError("name a table: tickpipe import --table NAME")
    database_url = cli.database_url()
    _import_table(table, database_url, _source_url(source) or database_url, columns, symbol)


def _source_url(option: str) -> Secret | None:
    """The URL of --from, or else of the variable. Every user of a machine can list the arguments of its processes."""
    if not option:
        return settings.read_import_database_url(cli.environment())
    urls.refuse_database(option, "--from")
    if has_password(Secret(option)):
        raise ConfigurationError(
            "--from has a password, which other users of this machine can see: set IMPORT_DATABASE_URL instead, or "
            "IMPORT_DATABASE_URL_FILE"
        )
    return Secret(option)


def _import_table(name: str, database_url: Secret, source_url: Secret, columns: str, symbol: str) -> None:
    with (
        closing(DatabaseClient(database_url)) as store,
        closing(DatabaseClient(source_url)) as source,
        progress(f"sorting the rows of {name}") as report,
    ):
        log.configure("WARNING", [database_url, source_url])
        table = find_table(source, name, read_columns(columns), symbol)
        importer = Importer(store, name, clock.microseconds)
        importer.begin()
        try:
            for rows, total in read_table(source, table):
                importer.add(rows)
                report(importer.result.read, total, f"storing the rows of {name}")
            importer.end()
        finally:
            echo(*importer.result.lines(name))
