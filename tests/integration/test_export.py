"""`tickpipe export` writes complete files only, and `tickpipe import` restores them to the last bit."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow.dataset
import pytest
from pyarrow import fs

from common.database.client import DatabaseClient
from common.errors import ConfigurationError
from tests.support.candles import DAY, HOUR, START, Traded, insert_ticks, make_ticks, store_of
from tests.support.files import (
    END,
    checksum,
    export_to,
    files_of,
    insert_difficult_ticks,
    partitions_of,
    refused,
    run,
)
from tests.support.pipeline import Database
from tests.support.processes import Processes
from tests.support.sessions import StoredSession
from tests.support.waiting import wait_for
from tickpipe.files import export as exporting
from tickpipe.files.export import MismatchError, read_contents
from tickpipe.files.importing import STORED_BEFORE
from tickpipe.files.partition import Format
from tickpipe.files.storage import Storage
from tickpipe.files.ticks import SCHEMA, write_file
from tickpipe.inspect.verify import verify


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_an_export_restores_every_tick(backend: Database, processes: Processes, tmp_path: Path, form: Format) -> None:
    insert_difficult_ticks(backend, 1)
    before, count = checksum(backend), backend.count()
    lines = run(processes, backend, "export", "--to", str(tmp_path / "ticks"), "--format", form)
    files = len(partitions_of(backend))
    assert lines[0] == f"{count:,} ticks of 5 symbols: {files} files written, 0 complete before"
    backend.query("DELETE FROM prices_real_time")
    assert run(processes, backend, "import", str(tmp_path / "ticks")) == [
        f"{files} files: {count:,} ticks restored, 0 stored before"
    ]
    assert checksum(backend) == before
    assert run(processes, backend, "import", str(tmp_path / "ticks")) == [
        f"{files} files: 0 ticks restored, {count:,} stored before"
    ]
    assert checksum(backend) == before


def test_an_export_that_another_tool_has_written_again_restores_every_tick(
    database: Database, store: DatabaseClient, processes: Processes, tmp_path: Path
) -> None:
    """One file, with the symbol in a column."""
    insert_difficult_ticks(database, 11)
    before = checksum(database)
    export_to(store, tmp_path / "ticks")
    frame = pl.read_parquet(tmp_path / "ticks/**/*.parquet", hive_partitioning=True)
    frame.sort("received_at").write_parquet(tmp_path / "all.parquet")
    database.query("TRUNCATE prices_real_time")
    lines = run(processes, database, "import", str(tmp_path / "all.parquet"))
    assert lines == [f"1 file: {before[0][0]:,} ticks restored, 0 stored before"]
    assert checksum(database) == before


def test_a_file_has_the_columns_of_the_table(database: Database) -> None:
    columns = database.query(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'prices_real_time'::regclass AND attnum > 0"
    )
    assert {*SCHEMA.names, "symbol"} == {name for (name,) in columns}


def test_files_are_partitioned_and_sorted_for_other_tools(
    database: Database, store: DatabaseClient, tmp_path: Path
) -> None:
    insert_difficult_ticks(database, 2)
    export_to(store, tmp_path)
    assert files_of(tmp_path) == partitions_of(database)
    counts = dict(database.query("SELECT symbol, count(*) FROM prices_real_time GROUP BY symbol"))
    found = pl.scan_parquet(tmp_path / "**/*.parquet", hive_partitioning=True).group_by("symbol").len().collect()
    assert dict(found.iter_rows()) == counts
    frame = pd.read_parquet(tmp_path, filters=[("symbol", "=", "BTC/USD")])
    assert len(frame) == counts["BTC/USD"]
    assert str(frame["time"].dtype) == "datetime64[us, UTC]"
    dataset = pyarrow.dataset.dataset(tmp_path, partitioning="hive")
    keys = ["time", "session", "seq"]
    for fragment in dataset.get_fragments():
        table = fragment.to_table(columns=keys)
        assert table.equals(table.sort_by([(key, "ascending") for key in keys]))


def test_complete_files_are_kept_and_others_written_again(
    database: Database, store: DatabaseClient, tmp_path: Path
) -> None:
    ticks = make_ticks(3, days=4)
    insert_ticks(database, ticks[:-1])
    first = export_to(store, tmp_path)
    assert (len(first.written), first.kept, first.ticks) == (len(partitions_of(database)), 0, len(ticks) - 1)
    insert_ticks(database, ticks[-1:], first=len(ticks))
    second = export_to(store, tmp_path)
    assert (len(second.written), second.kept, second.ticks) == (1, len(first.written) - 1, len(ticks))
    assert files_of(tmp_path) == partitions_of(database)


def test_a_span_is_exported(database: Database, store: DatabaseClient, tmp_path: Path) -> None:
    """A file of a part of a day is completed by a later export."""
    insert_ticks(database, make_ticks(4, days=4))
    since, until = START + DAY + 5 * HOUR, START + 3 * DAY
    within = "SELECT count(*) FROM prices_real_time WHERE time >= %s AND time < %s"
    result = export_to(store, tmp_path, since, until)
    assert [(result.ticks,)] == [(sum(files_of(tmp_path).values()),)] == database.query(within, since, until)
    export_to(store, tmp_path)
    assert files_of(tmp_path) == partitions_of(database)


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_no_tick_of_a_file_is_lost(database: Database, store: DatabaseClient, tmp_path: Path, form: Format) -> None:
    """The database may have dropped ticks of a file, and have others of the same day."""
    insert_difficult_ticks(database, 5)
    before = checksum(database)
    storage = Storage(str(tmp_path))
    database.query("CREATE TABLE all_ticks AS SELECT * FROM prices_real_time")
    try:
        database.query("DELETE FROM prices_real_time WHERE seq % 3 = 0")
        export_to(store, storage, form=form)
        database.query("TRUNCATE prices_real_time")
        database.query("INSERT INTO prices_real_time SELECT * FROM all_ticks WHERE seq % 2 = 0 OR seq % 3 = 0")
        second = export_to(store, storage, form=form)
        assert second.written
        third = export_to(store, storage, form=form)
        assert (len(third.written), third.kept) == (0, len(second.contents))
        database.query("TRUNCATE prices_real_time")
    finally:
        database.query("DROP TABLE all_ticks")
    with closing(store_of(database)) as other:
        assert restore_all(other, storage) == before[0][0]
    assert checksum(database) == before


def restore_all(store: DatabaseClient, storage: Storage) -> int:
    """Restore all files. Returns the number of new ticks."""
    from tickpipe.files import restore

    return sum(
        counts.new
        for path in restore.find_files(storage)
        for counts in restore.restore(store, storage, path, restore.look(storage, path))
    )


def test_an_export_killed_at_any_moment_continues(database: Database, processes: Processes, tmp_path: Path) -> None:
    insert_ticks(database, make_ticks(6, days=20, count=8000))
    folder, total, rng = tmp_path / "ticks", len(partitions_of(database)), random.Random(6)
    done = 0
    for _ in range(5):
        process = processes.start("tickpipe", "export", "--to", str(folder), DATABASE_URL=database.url)
        wanted = min(total - 1, done + rng.randrange(1, 12))
        wait_for(
            lambda running=process, wanted=wanted: (
                running.status is not None  # type: ignore[misc]
                or len([*folder.rglob("ticks.parquet")]) >= wanted
            ),
            message=f"{wanted} files",
        )
        process.kill()
        complete = {path: rows for path, rows in files_of_names(folder).items() if rows >= 0}
        done = len(complete)
        assert complete.items() <= partitions_of(database).items(), "a file has its name when it is complete"
    lines = run(processes, database, "export", "--to", str(folder))
    assert f"{done} complete before" in lines[0]
    assert files_of(folder) == partitions_of(database)


def files_of_names(folder: Path) -> dict[str, int]:
    """The rows of each file that is not hidden."""
    return {
        str(path.relative_to(folder)): pyarrow.parquet.read_metadata(path).num_rows
        for path in folder.rglob("ticks.parquet")
    }


def test_a_file_that_differs_from_the_database_ends_the_export(
    database: Database, store: DatabaseClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_ticks(database, make_ticks(7))
    write = write_file
    monkeypatch.setattr(
        exporting, "write_file", lambda path, form, tables: write(path, form, (table.slice(1) for table in tables))
    )
    with pytest.raises(MismatchError, match=r"ticks were written, .* were expected"):
        export_to(store, tmp_path)
    assert files_of(tmp_path) == {}


def test_a_damaged_file_is_named_and_kept(database: Database, store: DatabaseClient, tmp_path: Path) -> None:
    insert_ticks(database, make_ticks(8))
    export_to(store, tmp_path)
    path = sorted(files_of(tmp_path))[0]
    content = (tmp_path / path).read_bytes()
    (tmp_path / path).write_bytes(content[:-20])
    with pytest.raises(ConfigurationError, match=f"{path} cannot be read: "):
        export_to(store, tmp_path)
    assert (tmp_path / path).read_bytes() == content[:-20]
    for position in range(8, 200, 16):  # within the first pages
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        (tmp_path / path).write_bytes(damaged)
        try:
            read_contents(Storage(str(tmp_path)), path, everything=True)
        except ConfigurationError:
            return
    pytest.fail("no damage is found")


def test_an_export_to_other_storage_has_the_same_files(
    database: Database, store: DatabaseClient, tmp_path: Path
) -> None:
    insert_ticks(database, make_ticks(9))
    other = Storage("", FoldersAsNeeded(str(tmp_path)))
    first = export_to(store, other)
    insert_ticks(database, [Traded("AAPL", None, START, START, 1.0, None)], session=2)
    second = export_to(store, other)
    assert (len(second.written), second.kept) == (1, len(first.written) - 1)
    assert files_of(tmp_path) == partitions_of(database)
    assert restore_all(store, other) == 0


def FoldersAsNeeded(folder: str) -> fs.FileSystem:  # noqa: N802
    """A file system in a folder that, like S3, needs no folders."""
    root = Path(folder)
    for symbol in ("AAPL", "BTC%2FUSD", "EUR%2FUSD"):
        for day in range(-1, 4):
            (root / f"symbol={symbol}/date={START + day * DAY:%Y-%m-%d}").mkdir(parents=True)
    return fs.SubTreeFileSystem(folder, fs.LocalFileSystem())


def test_the_state_of_the_sessions_is_printed(
    database: Database, store: DatabaseClient, processes: Processes, tmp_path: Path
) -> None:
    for day, verified in ((0, True), (1, False)):
        session = StoredSession(store, (START + day * DAY).timestamp())
        session.emit("started", 0, feed="twelvedata")
        session.store([1, 2, 3])
        session.checkpoint("stopped", 1, 3)
        if verified:
            verify(store, [], [], tmp_path, recheck_after=0)
    lines = run(processes, database, "export", "--to", str(tmp_path / "ticks"), "--since", "2026-03-01")
    assert lines == [
        "6 ticks of 1 symbol: 2 files written, 0 complete before",
        "2 sessions in this span, 1 verified",
        f"  not verified: session {session.id} (twelvedata)",
        "run `tickpipe verify`: the files have only what the database has",
    ]
    one = run(processes, database, "export", "--to", str(tmp_path / "one"), "--until", "2026-03-03")
    assert one[1:] == ["1 session in this span, 1 verified"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "name a folder or a URL"),
        (["--to", "x", "--until", "soon"], "--until 'soon' is not a date or an age"),
        (["--to", "x", "--since", "2026-03-02", "--until", "2026-03-02"], "--since 2026-03-02 is not before"),
    ],
)
def test_wrong_options_are_refused(database: Database, processes: Processes, options: list[str], words: str) -> None:
    (line,) = run(processes, database, "export", *options, status=2)
    assert words in line


# Files of others.


def test_a_csv_of_another_vendor_becomes_a_session(
    database: Database, store: DatabaseClient, processes: Processes, tmp_path: Path
) -> None:
    file = tmp_path / "aapl.csv"
    rows = [f"{1772445600000 + n * 250},{100 + n / 8},{n % 3},B" for n in range(12_000)]
    file.write_text("\n".join(["ts,last,qty,note", *rows, rows[-1], "x,1,1,", "1,2", "1772459999000,,1,"]) + "\n")
    arguments = ("import", str(file), "--columns", "time=ts,price=last,size=qty", "--symbol", "AAPL")
    lines = run(processes, database, *arguments)
    assert lines[0] == f"{file}: 12,004 rows read, 12,000 stored, 4 not stored"
    assert refused(lines) == {
        "exact double of another row": 1,
        "time is neither ISO 8601 nor a number since 1970": 1,
        "price is missing": 1,
        "the row has too few or too many columns": 1,
    }
    found = database.query("SELECT symbol, min(time), count(DISTINCT size) FROM prices_real_time GROUP BY symbol")
    assert found == [("AAPL", START + 10 * HOUR, 3)]
    (verdict,) = verify(store, [], [], tmp_path, recheck_after=0)
    assert (verdict.state, verdict.stored) == ("complete", 12_000)
    assert refused(run(processes, database, *arguments))[STORED_BEFORE] == 12_000
    assert database.count() == 12_000


def test_a_parquet_file_of_another_vendor_is_stored(database: Database, processes: Processes, tmp_path: Path) -> None:
    """The symbol is in the path. The times have nanoseconds."""
    folder = tmp_path / "symbol=BTC%2FUSD"
    folder.mkdir()
    times = pd.to_datetime(["2026-03-02T10:00:00.123456789Z", "2026-03-02T10:00:01.000000000Z"])
    pd.DataFrame({"t": times, "price": [1.25, 2.5], "side": ["buy", None]}).to_parquet(folder / "trades.parquet")
    run(processes, database, "import", str(tmp_path), "--columns", "time=t")
    found = database.query(
        "SELECT symbol, extract(microseconds FROM time)::int, price, side FROM prices_real_time ORDER BY seq"
    )
    assert found == [("BTC/USD", 123456, 1.25, "buy"), ("BTC/USD", 1000000, 2.5, None)]


def test_files_that_cannot_be_imported_are_refused(
    database: Database, store: DatabaseClient, processes: Processes, tmp_path: Path
) -> None:
    assert "name files or a table" in run(processes, database, "import", status=2)[0]
    assert "has no file with one of the suffixes" in run(processes, database, "import", str(tmp_path), status=2)[0]
    (tmp_path / "ticks.csv").write_text("a,b\n1,2\n")
    assert "has no column 'time'. It has: a, b." in run(processes, database, "import", str(tmp_path), status=2)[0]
    insert_ticks(database, make_ticks(10, count=10))
    export_to(store, tmp_path / "ticks", until=END)
    (tmp_path / "alone.parquet").write_bytes(next((tmp_path / "ticks").rglob("*.parquet")).read_bytes())
    assert "add --symbol" in run(processes, database, "import", str(tmp_path / "alone.parquet"), status=2)[0]
    run(processes, database, "import", str(tmp_path / "alone.parquet"), "--symbol", "AAPL")
