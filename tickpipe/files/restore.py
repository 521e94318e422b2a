"""Stores ticks of files: an export of tickpipe as it was, and files of others as sessions of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from common.database.client import DatabaseClient
from common.database.errors import BAD_DATA, one_line
from common.errors import ConfigurationError
from tickpipe.files.columns import COLUMNS, Row, choose_columns, to_micros
from tickpipe.files.partition import symbol_of
from tickpipe.files.storage import Storage
from tickpipe.files.ticks import OWN_COLUMNS, SCHEMA, read_file

#: Rows in one transaction.
BATCH = 5000
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".csv.zst")


class Restored(NamedTuple):
    """Ticks of a file, and how many of them are new in the database."""

    ticks: int = 0
    new: int = 0

    def __add__(self, other: tuple[int, ...]) -> Restored:  # type: ignore[override]
        return Restored(self.ticks + other[0], self.new + other[1])


class File(NamedTuple):
    """A file of ticks: its path, its columns, and the symbol of all its rows if they have no column for it."""

    path: str
    names: list[str]
    symbol: str

    @property
    def is_parquet(self) -> bool:
        """Whether it is Parquet, and not CSV."""
        return self.path.endswith(".parquet")

    @property
    def is_own(self) -> bool:
        """Whether tickpipe exported it."""
        return set(self.names) >= OWN_COLUMNS


def find_files(storage: Storage) -> list[str]:
    """The paths of the files of ticks. Raises ConfigurationError if there is none, OutageError."""
    found = [path for path in storage.paths() if storage.full(path).endswith(SUFFIXES)]
    if not found:
        raise ConfigurationError(f"{storage.place} has no file with one of the suffixes {', '.join(SUFFIXES)}")
    return sorted(found, key=lambda path: (path.rpartition("date=")[2], path))


def look(storage: Storage, path: str, symbol: str = "") -> File:
    """The columns of a file. `symbol`: the symbol of its ticks, if its path and its columns have none.

    Raises ConfigurationError if it is not readable, OutageError.
    """
    full = storage.full(path)
    with storage.errors(path):
        if full.endswith(".parquet"):
            with storage.open(path) as source, pa.parquet.ParquetFile(source) as file:
                names = list(file.schema_arrow.names)
        else:
            options = _csv_options(lambda: None)
            with storage.stream(path) as source, pa.csv.open_csv(source, parse_options=options) as reader:
                names = list(reader.schema.names)
    return File(full, names, symbol_of(full) or symbol)


def restore(store: DatabaseClient, storage: Storage, path: str, file: File) -> Iterator[Restored]:
    """Store the ticks of an export with their session and number. Existing rows stay. Yields the counts of each batch.

    Raises OutageError; ConfigurationError for a damaged file.
    """
    if not file.symbol and "symbol" not in file.names:
        raise ConfigurationError(f"{file.path}: no column and no folder `symbol=…` has the symbol: add --symbol")
    with storage.errors(path):
        opener = storage.open if file.is_parquet else storage.stream
        for table in read_file(lambda: opener(path), "parquet" if file.is_parquet else "csv"):
            for batch in table.to_batches(BATCH):
                yield Restored(batch.num_rows, _insert(store, file, batch))


def _insert(store: DatabaseClient, file: File, batch: Any) -> int:
    names = [name for name in SCHEMA.names if name in batch.schema.names]
    values = {name: _values(batch.column(name).cast(SCHEMA.field(name).type)) for name in names}
    symbols = batch.column("symbol").to_pylist() if "symbol" in batch.schema.names else [file.symbol] * batch.num_rows
    unnested = ", ".join(f"unnest(%({name})s::{_SQL_TYPES.get(name, 'float8')}[]) AS {name}" for name in names)
    targets = ", ".join(f"{_EPOCH.format(name)} AS {name}" if name in _TIMES else name for name in names)
    statement = (
        f"INSERT INTO prices_real_time (symbol, {', '.join(names)}) SELECT symbol, {targets} "
        f"FROM (SELECT unnest(%(symbol)s::text[]) AS symbol, {unnested}) AS t ON CONFLICT DO NOTHING"
    )
    try:
        with store.transaction() as connection, connection.cursor() as cursor:
            cursor.execute(statement, {**values, "symbol": symbols})
            return cursor.rowcount
    except BAD_DATA as error:
        raise ConfigurationError(f"{file.path} has a value that cannot be stored: {one_line(error)}") from error


def _values(column: Any) -> Any:
    """An array literal of numbers, or a list of texts."""
    if column.type == pa.string():
        return column.to_pylist()
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return "{" + ",".join(pc.fill_null(column.cast(pa.string()), "NULL").to_pylist()) + "}"


_TIMES = ("time", "received_at")
_EPOCH = "timestamptz 'epoch' + {} * interval '1 microsecond'"
_SQL_TYPES = {
    **dict.fromkeys(("time", "received_at", "session", "seq", "trade_id"), "bigint"),
    **dict.fromkeys(("exchange", "side", "source"), "text"),
}


def _csv_options(refuse: Callable[[], object]) -> Any:
    """`refuse` is called for each row with too few or too many columns."""

    def skip(_: object) -> str:
        refuse()
        return "skip"

    return pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip)


def read_rows(
    storage: Storage, path: str, file: File, wanted: Mapping[str, str], refuse: Callable[[], object]
) -> Iterator[list[Row]]:
    """Batches of rows of another vendor's file. `wanted`: as in `choose_columns`.

    `refuse` is called for each row of CSV with too few or too many columns.

    Raises OutageError; ConfigurationError for a missing column or a damaged file.
    """
    chosen = choose_columns(file.names, wanted, file.path, symbol=file.symbol)
    with storage.errors(path):
        for batch in _batches(storage, path, file, sorted(set(chosen.values())), refuse):
            columns = [
                _texts(batch.column(chosen[ours]), ours)
                if ours in chosen
                else [file.symbol if ours == "symbol" else None] * batch.num_rows
                for ours in COLUMNS
            ]
            yield list(zip(*columns, strict=True))


def _batches(storage: Storage, path: str, file: File, names: list[str], refuse: Callable[[], object]) -> Iterator[Any]:
    if file.is_parquet:
        with storage.open(path) as source, pa.parquet.ParquetFile(source) as parquet:
            yield from parquet.iter_batches(BATCH, columns=names)
        return
    types = dict.fromkeys(names, pa.string())
    options = pa.csv.ConvertOptions(
        include_columns=names,
        column_types=types,
        strings_can_be_null=True,
        null_values=[""],
    )
    quoting = _csv_options(refuse)
    with storage.stream(path) as source, pa.csv.open_csv(source, convert_options=options, parse_options=quoting) as csv:
        for batch in csv:
            for start in range(0, batch.num_rows, BATCH):
                yield batch.slice(start, BATCH)


def _texts(column: Any, ours: str) -> list[str | None]:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
        texts: list[str | None] = column.cast(pa.string()).to_pylist()
        return texts
    texts = column.cast(pa.string()).to_pylist()
    return [text and to_micros(text) for text in texts] if ours == "time" else texts
