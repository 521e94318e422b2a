"""Where the ticks of a symbol and a day are: `symbol=BTC%2FUSD/date=2026-11-22/ticks.parquet`. Pure.

This is the layout of Hive, which pyarrow, pandas, Polars, DuckDB and Spark read: symbol and date are columns to them.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

Format = Literal["parquet", "csv"]
FILE_NAMES: dict[Format, str] = {"parquet": "ticks.parquet", "csv": "ticks.csv.gz"}


class Partition(NamedTuple):
    """The ticks of a symbol on a UTC day of `time`."""

    symbol: str
    day: date

    @property
    def since(self) -> datetime:
        """The first moment of the day."""
        return datetime(self.day.year, self.day.month, self.day.day, tzinfo=UTC)

    @property
    def until(self) -> datetime:
        """The first moment of the next day."""
        return self.since + timedelta(days=1)

    def path(self, form: Format) -> str:
        """The path of the file, below the folder of the export."""
        return f"symbol={quote(self.symbol, safe='')}/date={self.day:%Y-%m-%d}/{FILE_NAMES[form]}"


def symbol_of(path: str) -> str:
    """The symbol in a path; empty if it has none."""
    found = re.search(r"(?:^|/)symbol=([^/]+)/", path)
    return unquote(found[1]) if found else ""


def day_of(path: str) -> date | None:
    """The UTC day in a path; None if it has none."""
    found = re.search(r"(?:^|/)date=([0-9]{4}-[0-9]{2}-[0-9]{2})/", path)
    try:
        return date.fromisoformat(found[1]) if found else None
    except ValueError:
        return None
