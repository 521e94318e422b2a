"""Reads ticks from an archive of `tickpipe retention --archive` or an export, together with those of the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from tickpipe.client.queries import TICK_SCHEMA
from tickpipe.files.partition import FILE_NAMES, Format, Partition, day_of, symbol_of
from tickpipe.files.storage import Storage
from tickpipe.files.ticks import SCHEMA, merge, read_file


class Archive:
    """Files of ticks, one for each symbol and UTC day."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def batches(
        self, symbol: str, since: datetime, until: datetime, stored: Iterable[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        """The ticks of a symbol in a span, those of the files and those that are `stored`: each once, in order.

        `stored` has the columns and the order of `Database.ticks`. Raises OutageError, ConfigurationError.
        """
        files = self._tables(symbol, since, until)
        rows = (pa.Table.from_batches([batch]).select(SCHEMA.names).cast(SCHEMA) for batch in stored if len(batch))
        first = next(rows, None)
        # Most days have no stored tick any more. A merge compares row by row, so it is slower.
        tables = files if first is None else merge(files, _chained(first, rows))
        for table in tables:
            named = table.append_column("symbol", pa.array([symbol] * len(table), pa.string()))
            for batch in named.select(TICK_SCHEMA.names).to_batches():
                yield pa.RecordBatch.from_arrays(batch.columns, schema=TICK_SCHEMA)

    def _tables(self, symbol: str, since: datetime, until: datetime) -> Iterator[pa.Table]:
        for partition, form in self._files(symbol):
            if partition.until <= since or partition.since >= until:
                continue
            path = partition.path(form)
            with self._storage.errors(path):
                for table in read_file(partial(_opened, self._storage, path, form), form):
                    inside = pc.and_(
                        pc.greater_equal(table["time"], pa.scalar(since, table["time"].type)),
                        pc.less(table["time"], pa.scalar(until, table["time"].type)),
                    )
                    yield table.filter(inside)

    def _files(self, symbol: str) -> list[tuple[Partition, Format]]:
        """The files of a symbol by day: of Parquet, if a day has both formats."""
        found: defaultdict[Partition, set[Format]] = defaultdict(set)
        for path in self._storage.paths():
            day = day_of(path)
            form = next((form for form, name in FILE_NAMES.items() if path.endswith(f"/{name}")), None)
            if day and form and symbol_of(path) == symbol:
                found[Partition(symbol, day)].add(form)
        return sorted((each, "parquet" if "parquet" in forms else "csv") for each, forms in found.items())


def _opened(storage: Storage, path: str, form: Format) -> object:
    return storage.open(path) if form == "parquet" else storage.stream(path)


def _chained(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest
