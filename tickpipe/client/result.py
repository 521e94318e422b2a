"""The answer to a question, as Arrow, pandas or polars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from common.errors import ConfigurationError
from tickpipe.extras import required_extra

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    import polars as pl


class Result:
    """The rows of a question. Each conversion reads them from the database, so convert once and keep the result.

    `schema` has the names and types of the columns. Times are in microseconds, UTC.
    """

    def __init__(self, title: str, schema: pa.Schema, read: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        """`read` returns the rows as record batches of this schema."""
        self.schema = schema
        self._title = title
        self._read = read

    def __repr__(self) -> str:
        return f"<{self._title}: {', '.join(self.schema.names)}>"

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows as Arrow record batches of about 4 MB, for a result that does not fit into memory.

        It holds one batch at a time. All batches are of one snapshot of the database. Raises OutageError.
        """
        return self._read()

    def arrow(self) -> pa.Table:
        """The rows as an Arrow table. Raises OutageError."""
        return pa.Table.from_batches(self._read(), self.schema)

    def plot(self, gaps: Result | None = None) -> go.Figure:
        """Candles as a chart: a plotly Figure, which a notebook shows. `gaps`, the result of `gaps()`, are shaded.

        Raises OutageError; ConfigurationError for rows that are not candles, or without the extra `plot`.
        """
        if "open" not in self.schema.names:
            raise ConfigurationError(f"{self._title} are not candles, so they have no chart. Use db.candles(…).plot()")
        with required_extra("plot", ".plot()"):
            from tickpipe.client.plot import draw
        return draw(self.arrow(), None if gaps is None else gaps.arrow())

    def pandas(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame. Raises OutageError, or ConfigurationError without pandas.

        Times are datetime64[us, UTC], prices float64 with NaN for null. A column of integers that can be null is Int64.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"`.pandas()` needs pandas: pip install pandas ({error})") from None
        table = self.arrow()
        frame = table.to_pandas(split_blocks=True)
        for field in self.schema:  # pyarrow would make them float64, which changes large numbers
            if field.nullable and pa.types.is_integer(field.type):
                frame[field.name] = table[field.name].to_pandas(types_mapper={field.type: pd.Int64Dtype()}.get)
        return frame

    def polars(self) -> pl.DataFrame:
        """The rows as a polars DataFrame. Raises OutageError, or ConfigurationError without polars.

        Times are Datetime("us", "UTC").
        """
        try:
            import polars as pl
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"`.polars()` needs polars: pip install polars ({error})") from None
        frame = pl.from_arrow(self.arrow())
        assert isinstance(frame, pl.DataFrame)  # noqa: S101  a table never becomes a Series
        return frame
