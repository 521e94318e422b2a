"""Ticks as Arrow tables: read from the database, and written to and read from files."""

from __future__ import annotations

import gzip
import heapq
import io
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from psycopg2.extensions import cursor as Cursor  # noqa: N812  psycopg2 names its class so

from tickpipe.files.partition import Format, Partition

#: Rows in memory, and in a row group of Parquet.
BATCH = 100_000
#: Sums are of the remainders, so that a sum of a billion rows is a 64-bit integer.
MODULUS = 1_000_000_007

_TIME = pa.timestamp("us", "UTC")
#: The columns of a file: those of prices_real_time without the symbol, which the path has.
SCHEMA = pa.schema(
    [
        pa.field("time", _TIME, nullable=False),
        pa.field("price", pa.float64(), nullable=False),
        ("day_volume", pa.float64()),
        ("bid", pa.float64()),
        ("ask", pa.float64()),
        ("exchange", pa.string()),
        pa.field("received_at", _TIME, nullable=False),
        pa.field("session", pa.int64(), nullable=False),
        pa.field("seq", pa.int64(), nullable=False),
        ("size", pa.float64()),
        ("side", pa.string()),
        ("trade_id", pa.int64()),
        ("source", pa.string()),
    ]
)
#: A file with these columns was exported by tickpipe.
OWN_COLUMNS = frozenset({"time", "price", "received_at", "session", "seq"})
_CSV_COLUMNS = pa.csv.ConvertOptions(
    column_types=SCHEMA, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
)
_CSV_QUOTING = pa.csv.ParseOptions(newlines_in_values=True)


class Contents(NamedTuple):
    """Identifies a set of ticks of a partition: the number of ticks, and sums of their sessions and numbers."""

    rows: int = 0
    sessions: int = 0
    seqs: int = 0

    def __add__(self, other: tuple[int, ...]) -> Contents:  # type: ignore[override]
        return Contents(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def contents(tables: Iterable[Any]) -> Contents:
    """The contents of tables that have the columns session and seq."""
    total = Contents()
    for table in tables:
        total += table.num_rows, _sum(table["session"]), _sum(table["seq"])
    return total


def _sum(column: Any) -> int:
    if not len(column):
        return 0
    return int(pc.sum(pc.subtract(column, pc.multiply(pc.divide(column, MODULUS), MODULUS))).as_py())


# The database.


def count_day(cursor: Cursor, since: datetime, until: datetime) -> dict[str, tuple[Contents, list[int]]]:
    """The contents of the ticks of each symbol in a span of time, and their sessions."""
    cursor.execute(_COUNT_DAY, {"since": since, "until": until, "modulus": MODULUS})
    return {symbol: (Contents(*map(int, sums)), sessions) for symbol, sessions, *sums in cursor.fetchall()}


def count_before(cursor: Cursor, until: datetime) -> dict[Partition, Contents]:
    """The contents of all ticks before a time, by partition."""
    cursor.execute(_COUNT_BEFORE, {"until": until, "modulus": MODULUS})
    return {Partition(symbol, day): Contents(*map(int, sums)) for symbol, day, *sums in cursor.fetchall()}


def count_partition(cursor: Cursor, symbol: str, since: datetime, until: datetime) -> Contents:
    """The contents of the ticks of one symbol in a span of time."""
    cursor.execute(_COUNT, {"symbol": symbol, "since": since, "until": until, "modulus": MODULUS})
    return Contents(*map(int, cursor.fetchone() or (0, 0, 0)))


def read_ticks(cursor: Cursor, symbol: str, since: datetime, until: datetime) -> Iterator[Any]:
    """The ticks of one symbol in a span of time, in order, as tables. The transaction must stay open.

    The database makes a line of CSV of each tick, which Arrow parses: Python values would be slower. COPY would do the
    same, but the TimescaleDB of the tests has none.
    """
    cursor.execute(_READ, {"symbol": symbol, "since": since, "until": until})
    while True:
        cursor.execute(f"FETCH {BATCH} FROM tickpipe_export")
        lines = cursor.fetchall()
        if not lines:
            break
        text = "\n".join([line for (line,) in lines]).encode()
        yield _parse(text).cast(SCHEMA)
    cursor.execute("CLOSE tickpipe_export")


def _parse(text: bytes) -> Any:
    names = pa.csv.ReadOptions(column_names=SCHEMA.names, block_size=max(len(text) + 1, 1 << 20))
    return pa.csv.read_csv(
        io.BytesIO(text), read_options=names, parse_options=_CSV_QUOTING, convert_options=_CSV_COLUMNS
    )


# Files.


def write_file(path: Path, form: Format, tables: Iterable[Any]) -> None:
    """Write a file of these tables. Raises OSError."""
    if form == "parquet":
        with pa.parquet.ParquetWriter(path, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table)
        return
    with gzip.open(path, "wb", compresslevel=6) as file, pa.csv.CSVWriter(file, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)


def read_file(open_file: Callable[[], Any], form: Format, columns: list[str] | None = None) -> Iterator[Any]:
    """The ticks of a file that tickpipe exported, as tables; or only these columns.

    `open_file` opens it, decompressed. The checksums of Parquet's pages are compared. Raises OSError, ArrowInvalid.
    """
    if form == "parquet":
        with open_file() as source, pa.parquet.ParquetFile(source, page_checksum_verification=True) as file:
            for batch in file.iter_batches(BATCH, columns=columns):
                yield pa.Table.from_batches([batch])
        return
    with open_file() as source:
        for batch in pa.csv.open_csv(source, parse_options=_CSV_QUOTING, convert_options=_CSV_COLUMNS):
            table = pa.Table.from_batches([batch])
            yield table.select(columns) if columns else table


# Two sources.


def merge(*sources: Iterable[Any]) -> Iterator[Any]:
    """The ticks of sources that are in order, each once, in order, as tables."""
    batch: list[tuple[Any, ...]] = []
    last = None
    for key, row in heapq.merge(*map(_rows, sources), key=lambda each: each[0]):
        if key != last:
            last = key
            batch.append(row)
            if len(batch) == BATCH:
                yield _table(batch)
                batch = []
    if batch:
        yield _table(batch)


def _rows(tables: Iterable[Any]) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """The key (time, session, seq) and the values of each tick. Times are microseconds."""
    time, session, seq = map(SCHEMA.get_field_index, ("time", "session", "seq"))
    for table in tables:
        columns = [pc.cast(column, pa.int64()) if column.type == _TIME else column for column in table.columns]
        for row in zip(*(column.to_pylist() for column in columns), strict=True):
            yield (row[time], row[session], row[seq]), row


def _table(rows: list[tuple[Any, ...]]) -> Any:
    columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def symbol_and_day(partition: Partition, since: datetime, until: datetime) -> tuple[str, datetime, datetime]:
    """The arguments of `read_ticks` for the part of a partition that is in a span."""
    return partition.symbol, max(since, partition.since), min(until, partition.until)


_SUMS = "count(*), coalesce(sum(session %% %(modulus)s), 0), coalesce(sum(seq %% %(modulus)s), 0)"

_COUNT_DAY = f"""
SELECT symbol, array_agg(DISTINCT session), {_SUMS} FROM ticks_between(%(since)s, %(until)s) GROUP BY symbol
ORDER BY symbol
"""

_COUNT_BEFORE = f"""
SELECT symbol, (time AT TIME ZONE 'UTC')::date, {_SUMS} FROM ticks_between('-infinity', %(until)s) GROUP BY 1, 2
"""

_OF_PARTITION = """
FROM prices_real_time WHERE symbol = %(symbol)s AND time >= %(since)s AND time < %(until)s
"""

_COUNT = f"SELECT {_SUMS} {_OF_PARTITION}"


def _csv(field: Any) -> str:
    """SQL for one field of a line: NULL is empty, and a text is in quotes."""
    text = f"""'"' || replace({field.name}, '"', '""') || '"'""" if field.type == pa.string() else f"{field.name}::text"
    return text if not field.nullable else f"coalesce({text}, '')"


_LINE = " || ',' || ".join(map(_csv, SCHEMA))
_READ = f"DECLARE tickpipe_export NO SCROLL CURSOR FOR SELECT {_LINE} {_OF_PARTITION} ORDER BY time, session, seq"
