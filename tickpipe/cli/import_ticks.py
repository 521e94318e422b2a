"""`tickpipe import`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Annotated

import typer

from common import cli, clock, log, settings, urls
from common.database.client import DatabaseClient
from common.database.connections import has_password
from common.errors import ConfigurationError
from common.formatting import counted
from common.settings import Secret
from common.terminal import echo
from tickpipe.extras import required_extra
from tickpipe.files.columns import Row, read_columns
from tickpipe.files.importing import Importer
from tickpipe.files.table import find_table, read_table
from tickpipe.terminal.progress import progress

Place = Annotated[
    str, typer.Argument(help="A file or folder, or a URL such as s3://bucket/folder: Parquet or CSV.", show_default="")
]
TableName = Annotated[
    str,
    typer.Option("--table", help="A table of prices instead of files, such as that of TimescaleDB's tutorial."),
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


def import_ticks(
    place: Place = "", table: TableName = "", source: Source = "", columns: Columns = "", symbol: Symbol = ""
) -> None:
    """Store prices of files, or of another table.

    Files that `tickpipe export` wrote are restored: each tick with its session and number. All other prices become
    sessions of their own, which `tickpipe verify` checks. Rows that are not prices, and exact doubles, are counted with
    the reason. You can stop the command and run it again: it stores nothing twice.

    Files need the extra `client`.
    """
    if bool(place) == bool(table):
        raise ConfigurationError("name files or a table: tickpipe import FOLDER, or tickpipe import --table NAME")
    if source and place:
        raise ConfigurationError("--from belongs to --table: it names the database with the table")
    names, database_url = read_columns(columns), cli.database_url()
    if table:
        _import_table(table, database_url, _source_url(source) or database_url, names, symbol)
    else:
        _import_files(place, database_url, names, symbol)


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


def _import_table(name: str, database_url: Secret, source_url: Secret, names: dict[str, str], symbol: str) -> None:
    with (
        closing(DatabaseClient(database_url)) as store,
        closing(DatabaseClient(source_url)) as source,
        progress(f"sorting the rows of {name}") as report,
    ):
        log.configure("WARNING", [database_url, source_url])
        table = find_table(source, name, names, symbol)
        importer = Importer(store, name, clock.microseconds)

        def batches() -> Iterator[Sequence[Row]]:
            for rows, total in read_table(source, table):
                report(importer.result.read, total, f"storing the rows of {name}")
                yield rows

        _import_rows(importer, name, batches())


def _import_files(place: str, database_url: Secret, names: dict[str, str], symbol: str) -> None:
    with required_extra("client", "tickpipe import"):
        from tickpipe.files import restore as files
        from tickpipe.files.storage import Storage
    storage, restored, number = Storage(place), files.Restored(), 0
    with closing(DatabaseClient(database_url)) as store, progress("looking for files") as report:
        log.configure("WARNING", [database_url])
        paths = files.find_files(storage)
        try:
            for done, path in enumerate(paths):
                report(done, len(paths), f"storing {storage.full(path)}")
                file = files.look(storage, path, symbol)
                if file.is_own and not names:
                    number += 1
                    for counts in files.restore(store, storage, path, file):
                        restored += counts
                else:
                    importer = Importer(store, file.path.rpartition("/")[2], clock.microseconds)
                    refuse = partial(importer.refuse, "the row has too few or too many columns")
                    _import_rows(importer, file.path, files.read_rows(storage, path, file, names, refuse))
        finally:
            if restored.ticks:
                before = restored.ticks - restored.new
                echo(f"{counted(number, 'file')}: {restored.new:,} ticks restored, {before:,} stored before")


def _import_rows(importer: Importer, source: str, batches: Iterable[Sequence[Row]]) -> None:
    """Store these rows, and print the result, also of an import that fails."""
    importer.begin()
    try:
        for rows in batches:
            importer.add(rows)
        importer.end()
    finally:
        if importer.result.read:
            echo(*importer.result.lines(source))
