"""Exports ticks to files, one for each symbol and UTC day, and compares each file with the database.

A file has its name only when it is complete. A file that exists and has all ticks of the database is kept, so that an
export continues after any interruption. Otherwise a new file gets the ticks of both: no tick of a file is ever lost,
even if the database has dropped it.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from common.database.client import DatabaseClient
from common.errors import OutageError
from common.formatting import counted
from tickpipe.files.partition import Format, Partition
from tickpipe.files.storage import Storage
from tickpipe.files.ticks import (
    Contents,
    contents,
    count_day,
    count_partition,
    merge,
    read_file,
    read_ticks,
    symbol_and_day,
    write_file,
)
from tickpipe.progress import ProgressCallback

_KEYS = ["session", "seq"]
#: Sessions that are listed by name, at most.
MAX_LISTED = 10


class MismatchError(OutageError):
    """A file does not have the ticks that the database had."""


@dataclass
class ExportResult:
    """The partitions that were exported: for each, the contents of the database and those of its file.

    `written` are those whose file is new. `sessions` are the sessions of the ticks.
    """

    contents: dict[Partition, tuple[Contents, Contents]] = field(default_factory=dict)
    written: set[Partition] = field(default_factory=set)
    sessions: set[int] = field(default_factory=set)

    @property
    def kept(self) -> int:
        """The number of files that were complete before."""
        return len(self.contents) - len(self.written)

    @property
    def ticks(self) -> int:
        """The number of ticks in the database."""
        return sum(database.rows for database, _ in self.contents.values())

    def __str__(self) -> str:
        return (
            f"{self.ticks:,} ticks of {counted(len({each.symbol for each in self.contents}), 'symbol')}: "
            f"{counted(len(self.written), 'file')} written, {self.kept} complete before"
        )


def export(
    store: DatabaseClient,
    storage: Storage,
    since: datetime,
    until: datetime,
    form: Format,
    result: ExportResult,
    progress: ProgressCallback = lambda *_: None,
) -> None:
    """Export the ticks with a time in this span. Adds to `result`.

    Raises OutageError; MismatchError if a file lacks ticks of the database; ConfigurationError.
    """
    first = None
    for begin, end, found in _days(store, since, until):
        first = first or begin
        for symbol, (wanted, sessions) in found.items():
            partition = Partition(symbol, begin.astimezone(UTC).date())
            days = (min(until, datetime.now(UTC)) - first) / timedelta(days=1)
            progress((begin - first) / timedelta(days=1), max(days, 1), f"exporting {partition.day} {symbol}")
            _export_partition(store, storage, partition, (begin, end), wanted, form, result)
            result.sessions.update(sessions)


def _days(
    store: DatabaseClient, since: datetime, until: datetime
) -> Iterator[tuple[datetime, datetime, dict[str, tuple[Contents, list[int]]]]]:
    """Each UTC day of a span that has ticks: begin, end, and the contents by symbol."""
    at = since
    while True:
        with store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT first_tick(%s)", (at,))
            (tick,) = cursor.fetchone() or (None,)
            if tick is None or tick >= until:
                return
            midnight = tick.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
            begin, end = max(midnight, since), min(midnight + timedelta(days=1), until)
            found = count_day(cursor, begin, end)
        yield begin, end, found
        at = end


def _export_partition(
    store: DatabaseClient,
    storage: Storage,
    partition: Partition,
    span: tuple[datetime, datetime],
    wanted: Contents,
    form: Format,
    result: ExportResult,
) -> None:
    path = partition.path(form)
    before = filed = read_contents(storage, path) if storage.exists(path) else None
    if filed is None or filed != wanted:
        wanted, filed = _write(store, storage, partition, span, form, before)
        if filed != before:
            result.written.add(partition)
    result.contents[partition] = wanted, filed


def _write(
    store: DatabaseClient,
    storage: Storage,
    partition: Partition,
    span: tuple[datetime, datetime],
    form: Format,
    before: Contents | None,
) -> tuple[Contents, Contents]:
    """Write the file, unless the existing one has all ticks. Returns the contents of the database and of the file.

    `before`: the contents of the existing file.
    """
    path, ticks = partition.path(form), symbol_and_day(partition, *span)
    with storage.replacement(path) as new:
        with store.transaction("REPEATABLE READ") as connection, connection.cursor() as cursor:
            wanted = expected = count_partition(cursor, *ticks)
            seen = _Seen()
            if before is not None:
                old = read_file(partial(_open, storage, path, form), form)
                write_file(new, form, seen.watch(merge(old, read_ticks(cursor, *ticks))))
                expected = seen.total
            else:
                write_file(new, form, read_ticks(cursor, *ticks))
        written = contents(read_file(partial(_open_local, new, form), form, _KEYS))
        if written != expected or written.rows < wanted.rows:
            raise MismatchError(f"{path}: {written.rows:,} ticks were written, {expected.rows:,} were expected")
        if written == before:
            new.unlink()
    return wanted, written


class _Seen:
    """Counts what passes."""

    def __init__(self) -> None:
        self.total = Contents()

    def watch(self, tables: Iterable[object]) -> Iterator[object]:
        for table in tables:
            self.total += contents([table])
            yield table


def read_contents(storage: Storage, path: str, *, everything: bool = False) -> Contents:
    """The contents of a file. `everything`: read all its columns, so that damage is found.

    Raises OutageError, ConfigurationError.
    """
    with storage.errors(path):
        form: Format = "parquet" if path.endswith(".parquet") else "csv"
        return contents(read_file(partial(_open, storage, path, form), form, None if everything else _KEYS))


def _open(storage: Storage, path: str, form: Format) -> object:
    return storage.open(path) if form == "parquet" else storage.stream(path)


def _open_local(path: Path, form: Format) -> object:
    return path.open("rb") if form == "parquet" else gzip.open(path)


def session_lines(store: DatabaseClient, sessions: Iterable[int]) -> list[str]:
    """What `tickpipe verify` has found about these sessions, as text. Raises OutageError."""
    with store.transaction() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT session, coalesce(feed, '?'), verified FROM feed_states WHERE session = ANY (%s::bigint[]) "
            "ORDER BY session",
            (sorted(sessions),),
        )
        found = cursor.fetchall()
    open_ones = [(session, feed) for session, feed, verified in found if not verified]
    lines = [f"{counted(len(found), 'session')} in this span, {len(found) - len(open_ones)} verified"]
    lines += [f"  not verified: session {session} ({feed})" for session, feed in open_ones[:MAX_LISTED]]
    if len(open_ones) > MAX_LISTED:
        lines.append(f"  not verified: {len(open_ones) - MAX_LISTED} more")
    if open_ones:
        lines.append("run `tickpipe verify`: the files have only what the database has")
    return lines
