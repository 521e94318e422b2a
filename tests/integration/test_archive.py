"""`tickpipe retention --archive`: no tick is dropped that the archive does not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.compute as pc
import pytest

import tickpipe
from common.database.client import DatabaseClient
from common.errors import ConfigurationError, OutageError
from tests.support.candles import DAY, HOUR, START, Traded, assert_candles, insert_ticks, make_ticks, refresh, store_of
from tests.support.files import checksum, files_of, partitions_of, run
from tests.support.pipeline import Database
from tests.support.processes import Processes
from tickpipe.files import archive as archiving
from tickpipe.files.archive import archive
from tickpipe.files.export import ExportResult, MismatchError
from tickpipe.files.storage import Storage
from tickpipe.files.ticks import Contents
from tickpipe.maintenance import retention

#: All ticks of `make_ticks` are older.
AGE = timedelta(days=1)


@pytest.fixture
def archive_store(backend: Database) -> Iterator[DatabaseClient]:
    with closing(store_of(backend)) as store:
        yield store


def test_ticks_are_archived_before_they_are_dropped(backend: Database, processes: Processes, tmp_path: Path) -> None:
    expected = make_ticks(1, days=4)
    insert_ticks(backend, expected)
    refresh(backend)
    before, partitions = checksum(backend), partitions_of(backend)
    folder = tmp_path / "archive"
    lines = run(processes, backend, "retention", "--ticks", "1d", "--archive", str(folder))
    assert lines[0] == f"archive: 1,500 ticks of 3 symbols: {len(partitions)} files written, 0 complete before"
    assert lines[1] == "ticks are archived and dropped only when this command runs: run it daily"
    assert lines[2].startswith("1,500 ticks before ")
    assert backend.count() == 0
    assert files_of(folder) == partitions
    assert_candles(backend, expected)
    assert backend.query("SELECT sum(last_seq - first_seq + 1) FROM feed_expired") == [(1500,)]
    run(processes, backend, "import", str(folder))
    assert checksum(backend) == before
    refresh(backend)
    assert_candles(backend, expected)
    again = run(processes, backend, "retention", "--ticks", "1d", "--archive", str(folder))
    assert again[0] == f"archive: 1,500 ticks of 3 symbols: 0 files written, {len(partitions)} complete before"
    assert backend.count() == 0
    assert files_of(folder) == partitions


def test_a_late_tick_of_a_dropped_day_joins_the_archive(
    backend: Database, archive_store: DatabaseClient, tmp_path: Path
) -> None:
    expected = make_ticks(2)
    insert_ticks(backend, expected)
    partitions = partitions_of(backend)
    archive(archive_store, Storage(str(tmp_path)), AGE, ExportResult())
    late = [Traded("AAPL", None, START, START, 1.0, None)]
    insert_ticks(backend, late, session=2)
    archive(archive_store, Storage(str(tmp_path)), AGE, ExportResult())
    path = f"symbol=AAPL/date={START:%Y-%m-%d}/ticks.parquet"
    assert files_of(tmp_path) == {**partitions, path: partitions[path] + 1}
    assert backend.count() == 0


def test_ticks_that_arrive_after_the_export_are_archived_too(
    backend: Database, archive_store: DatabaseClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_ticks(backend, make_ticks(3))
    check, late = archiving.check, iter(range(2, 4))

    def check_and_insert(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        for session in late:
            insert_ticks(backend, [Traded("LATE", None, START + DAY, START, 1.0, None)], session=session)
            break

    monkeypatch.setattr(archiving, "check", check_and_insert)
    result = ExportResult()
    archive(archive_store, Storage(str(tmp_path)), AGE, result)
    assert backend.count() == 0
    assert files_of(tmp_path)[f"symbol=LATE/date={START + DAY:%Y-%m-%d}/ticks.parquet"] == 2
    assert sum(files_of(tmp_path).values()) == result.ticks == 1502


def test_ticks_that_keep_arriving_end_the_command(
    database: Database, store: DatabaseClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_ticks(database, make_ticks(4))
    check, sessions = archiving.check, iter(range(2, 100))

    def check_and_insert(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        insert_ticks(database, [Traded("LATE", None, START, START, 1.0, None)], session=next(sessions))

    monkeypatch.setattr(archiving, "check", check_and_insert)
    with pytest.raises(OutageError, match="keep arriving"):
        archive(store, Storage(str(tmp_path)), AGE, ExportResult())
    dropped = database.query("SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM feed_expired")[0][0]
    assert database.count() + dropped == 1503
    assert sum(files_of(tmp_path).values()) >= dropped


def test_nothing_is_dropped_if_the_archive_is_damaged(
    database: Database, store: DatabaseClient, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_ticks(database, make_ticks(5))
    before = checksum(database)

    def damage(storage: Storage, contents: object, progress: object) -> None:
        path = tmp_path / sorted(files_of(tmp_path))[0]
        content = bytearray(path.read_bytes())
        content[40] ^= 0xFF
        path.write_bytes(content)
        check(storage, contents, progress)  # type: ignore[arg-type]

    check = archiving.check
    with monkeypatch.context() as patch:
        patch.setattr(archiving, "check", damage)
        with pytest.raises((ConfigurationError, MismatchError)):
            archive(store, Storage(str(tmp_path)), AGE, ExportResult())
    assert checksum(database) == before
    with monkeypatch.context() as patch:
        patch.setattr(archiving, "read_contents", lambda *_, **__: Contents())
        for path in tmp_path.rglob("*.parquet"):
            path.unlink()
        with pytest.raises(MismatchError, match=r"it has 0 ticks, but .* were written: nothing was dropped"):
            archive(store, Storage(str(tmp_path)), AGE, ExportResult())
    assert checksum(database) == before
    (tmp_path / "file").touch()
    options = ("--ticks", "1d", "--archive", str(tmp_path / "file/below"))
    run(processes, database, "retention", *options, status=2)
    assert checksum(database) == before


def test_the_job_that_drops_without_an_archive_is_removed(hypertable: Database, tmp_path: Path) -> None:
    with closing(store_of(hypertable)) as store:
        retention.keep(store, timedelta(days=90))
        assert retention.look(store).ticks == timedelta(days=90)
        archive(store, Storage(str(tmp_path)), timedelta(days=90), ExportResult())
        assert retention.look(store).ticks is None


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--archive", "x"], "--archive needs an age"), (["--archive", "x", "--off"], "--off excludes")],
)
def test_wrong_options_are_refused(database: Database, processes: Processes, options: list[str], words: str) -> None:
    (line,) = run(processes, database, "retention", *options, status=2)
    assert words in line


def test_client_reads_the_archive_and_the_database(
    backend: Database, archive_store: DatabaseClient, tmp_path: Path
) -> None:
    """Also ticks of a dropped day that arrived later, and a day that is in both."""
    expected = make_ticks(1, days=4)
    insert_ticks(backend, expected)
    span = {"since": START - DAY, "until": START + 9 * DAY}
    with tickpipe.connect(backend.url, environ={}) as db:
        symbols = db.symbols()
        before = db.ticks(symbols, **span).arrow()
    archive(archive_store, Storage(str(tmp_path)), datetime.now(UTC) - START - 2 * DAY, ExportResult())
    assert 0 < backend.count() < len(expected)
    with tickpipe.connect(backend.url, environ={}, archive=str(tmp_path)) as db:
        assert db.ticks(symbols, **span).arrow() == before
        part = {"since": START + 5 * HOUR, "until": START + DAY + 7 * HOUR}
        inside = [row for row in before.to_pylist() if part["since"] <= row["time"] < part["until"]]
        assert db.ticks(symbols, **part).arrow().to_pylist() == inside
        assert db.ticks(symbols[0], since=START + 3 * DAY, until=START + 4 * DAY).arrow().num_rows > 0
        late = expected[0]._replace(time=START + HOUR, price=7.0)
        insert_ticks(backend, [late], session=2)
        found = db.ticks(late.symbol, since=START, until=START + DAY).arrow()
        assert found.filter(pc.equal(found["session"], 2))["price"].to_pylist() == [7.0]
        times = found["time"].to_pylist()
        assert times == sorted(times)
        assert len(times) == 1 + len([row for row in before.to_pylist() if row["symbol"] == late.symbol
                                      and START <= row["time"] < START + DAY])  # fmt: skip


def test_client_names_an_archive_that_cannot_be_read(
    backend: Database, archive_store: DatabaseClient, tmp_path: Path
) -> None:
    insert_ticks(backend, make_ticks(1, days=2))
    archive(archive_store, Storage(str(tmp_path / "archive")), datetime.now(UTC) - START - DAY, ExportResult())
    with tickpipe.connect(backend.url, environ={}, archive=str(tmp_path / "other")) as db:
        with pytest.raises(ConfigurationError, match="other: no such file or folder"):
            db.ticks("AAPL", since=START).arrow()
        assert db.ticks("AAPL", since=START + DAY).arrow().num_rows > 0
