"""docs/reading.md: its blocks, and the rows of the same questions in docs/querying.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from tests.support.querying import PAGE as SQL_PAGE
from tests.support.querying import SECTIONS as SQL_SECTIONS
from tests.support.querying import Block, read_page

PAGE = SQL_PAGE.with_name("reading.md")
SECTIONS = read_page(PAGE)

#: Heading and number of a query of docs/querying.md, with the columns to compare. None: the row has no such column.
Question = tuple[str, int, Sequence[str | None]]


def sql_of(question: Question) -> Block:
    """The query of docs/querying.md."""
    heading, number, _ = question
    return [block for block in SQL_SECTIONS[heading] if block.is_query][number]


def rows_of(frame: pl.DataFrame, columns: Sequence[str | None]) -> list[tuple[Any, ...]]:
    """The rows of a frame in the columns of a query."""
    return frame.select([name for name in columns if name]).rows()


#: By heading: how the namespace after the last block of a section becomes a frame, and the query with the same answer.
ANSWERS: Mapping[str, tuple[Callable[[dict[str, Any]], pl.DataFrame], Question]] = {
    "The last price": (
        lambda names: names["last"],
        ("The last price", 0, ["symbol", "time", "price", "bid", "ask"]),
    ),
    "Candles for a chart": (
        lambda names: pl.from_pandas(names["candles"]),
        ("Candles for a chart", 1, ["bucket", "close", "ticks"]),
    ),
    "Resample to 5 minutes": (
        lambda names: names["db"].candles("AAPL", "5m", since="1h").polars(),
        ("Resample to 5 minutes", 0, ["bucket", "open", "high", "low", "close", "ticks", "volume"]),
    ),
    "The exchange's day": (
        lambda names: names["days"],
        ("The exchange's day", 0, ["day", None, None, "open", "high", "low", "close", "volume"]),
    ),
    "The FX day": (
        lambda names: names["fx_days"],
        ("The FX day", 0, ["symbol", "day", None, "open", "high", "low", "close", "ticks"]),
    ),
    "Gaps": (lambda names: names["causes"], ("Gaps", 1, ["bucket", "cause"])),
    "Spread": (lambda names: names["spreads"], ("Spread", 0, ["hour", "quotes", "pips", "widest", None])),
    "Volume profile": (lambda names: names["profile"], ("Volume profile", 0, ["level", "volume", "percent"])),
    "Correlation of two symbols": (
        lambda names: pl.DataFrame(
            {
                "correlation": [round(names["returns"]["AAPL"].corr(names["returns"]["MSFT"]), 4)],
                "returns": [len(names["returns"])],
            }
        ),
        ("Correlation of two symbols", 0, ["correlation", "returns"]),
    ),
}
