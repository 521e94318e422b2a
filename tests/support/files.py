"""Exports in tests: the commands on a folder, and what its files and the database have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet

from common.database.client import DatabaseClient
from tests.support.candles import DAY, START, insert_ticks, make_ticks
from tests.support.pipeline import Database
from tests.support.processes import Processes
from tickpipe.files.export import ExportResult, export
from tickpipe.files.partition import Format
from tickpipe.files.storage import Storage

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
END = START + 10 * DAY


def run(processes: Processes, database: Database, *arguments: str, status: int = 0, **environ: str) -> list[str]:
    """Run a command of tickpipe to its end, and return the lines of its output."""
    process = processes.start("tickpipe", *arguments, DATABASE_URL=database.url, **environ)
    assert process.wait() == status, process.said()
    return process.last_log_line()


def refused(lines: Sequence[str]) -> dict[str, int]:
    """The rows that an import has not stored, by reason."""
    found = [re.fullmatch(r"  ([\d,]+) not stored: (.*)", line) for line in lines]
    return {match[2]: int(match[1].replace(",", "")) for match in found if match}


def insert_difficult_ticks(database: Database, seed: int, count: int = 1500) -> None:
    """Ticks of four days, also with texts and numbers that a format could change."""
    insert_ticks(database, make_ticks(seed, days=4, count=count), session=1_772_400_000_000_000)
    rows = [
        ("=A/ü %", 1e-300, 0.1 + 0.2, "", None, None, None, None),
        ("=A/ü %", -5e-324, 1e300, 'a "quoted", name', 0.0, "buy", 2**62, "backfill"),
        ("..", 1 / 3, None, "two\nlines", 1.5, "sell", 0, "import"),
        ("..", 123456789.123456, 5e15, "\\N NULL", None, None, None, None),
    ]
    for number, (symbol, price, volume, exchange, size, side, trade_id, source) in enumerate(rows, 1):
        database.query(
            "INSERT INTO prices_real_time (symbol, time, price, day_volume, exchange, received_at, session, seq, "
            "size, side, trade_id, source) "
            "VALUES (%s, %s::timestamptz + interval '0.000001 s', %s, %s, %s, now(), 0, %s, %s, %s, %s, %s)",
            symbol, START, price, volume, exchange, number, size, side, trade_id, source,
        )  # fmt: skip


def checksum(database: Database) -> list[tuple[Any, ...]]:
    """A value that depends on each column of each tick."""
    return database.query("SELECT count(*), sum(hashtext(p::text)::bigint) FROM prices_real_time AS p")


def export_to(
    store: DatabaseClient,
    folder: Path | Storage,
    since: datetime = EPOCH,
    until: datetime = END,
    form: Format = "parquet",
) -> ExportResult:
    """Export the ticks of a span."""
    result = ExportResult()
    export(store, folder if isinstance(folder, Storage) else Storage(str(folder)), since, until, form, result)
    return result


def files_of(folder: Path) -> dict[str, int]:
    """The rows of each file of Parquet, by path, also of hidden ones."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".tickpipe.lock"]
    return {str(path.relative_to(folder)): pyarrow.parquet.read_metadata(path).num_rows for path in paths}


def partitions_of(database: Database) -> dict[str, int]:
    """The rows of each symbol and day in the database, by the path of their file."""
    rows = database.query(
        "SELECT symbol, to_char(time AT TIME ZONE 'UTC', 'YYYY-MM-DD'), count(*) FROM prices_real_time GROUP BY 1, 2"
    )
    quoted = {"=A/ü %": "%3DA%2F%C3%BC%20%25", "BTC/USD": "BTC%2FUSD", "EUR/USD": "EUR%2FUSD"}
    return {f"symbol={quoted.get(symbol, symbol)}/date={day}/ticks.parquet": count for symbol, day, count in rows}
