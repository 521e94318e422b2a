"""The spool stores entries on disk, in order, until they are dropped. One process at a time can open its file."""

from __future__ import annotations

import json
import logging
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
from filelock import Timeout

from common.errors import ConfigurationError, OutageError
from common.settings import Secret
from producer.spool import Outgoing, Spool, SpoolFullError
from producer.spool_folder import adopt_orphans, make_folder, spool_folder
from tickpipe.inspect.sizes import folder_size


def price(n: int) -> Outgoing:
    return Outgoing("prices", {"seq": f"{n:03}", "symbol": 'ü"\ud800'})


def event(n: int) -> Outgoing:
    return Outgoing("feed", {"number": str(n)})


class Opener(Protocol):
    def __call__(self, name: str = "1.spool", max_bytes: int = 10**6) -> Spool: ...


@pytest.fixture
def open_spool(tmp_path: Path) -> Iterator[Opener]:
    with ExitStack() as stack:

        def open_one(name: str = "1.spool", max_bytes: int = 10**6) -> Spool:
            spool = Spool(tmp_path / name, max_bytes=max_bytes)
            stack.callback(spool.close)
            return spool

        yield open_one


def prices(spool: Spool, count: int = 9) -> list[Outgoing]:
    """The oldest prices in the spool."""
    return [Outgoing("prices", fields) for fields in spool.head("prices", count)[1]]


def drop(spool: Spool, count: int) -> None:
    """Drop the oldest prices."""
    spool.drop("prices", spool.head("prices", count)[0])


def test_entries_are_read_in_order_per_stream(open_spool: Opener) -> None:
    spool = open_spool()
    spool.put([price(1), event(1)])
    spool.put([price(2), event(2), price(3)])
    mark, entries, *_ = spool.head("prices", 2)
    assert entries == [price(1).fields, price(2).fields]
    assert (spool.entries, spool.waiting("prices"), spool.waiting("feed")) == (5, 3, 2)  # `head` removes nothing
    spool.drop("prices", mark)
    assert (spool.entries, spool.waiting("prices"), prices(spool)) == (3, 1, [price(3)])
    drop(spool, 3)
    assert (spool.entries, spool.head("prices", 3)[:2]) == (2, (0, []))
    mark, entries, *_ = spool.head("feed", 3)
    assert entries == [event(1).fields, event(2).fields]
    spool.put([price(4)])
    spool.drop("feed", mark)
    assert (spool.waiting("prices"), spool.waiting("feed"), prices(spool)) == (1, 0, [price(4)])


def test_entries_waiting_for_one_stream_are_found_by_the_next_process(open_spool: Opener) -> None:
    spool = open_spool()
    spool.put([price(1), event(1), price(2)])
    drop(spool, 2)
    spool.close()
    spool = open_spool()
    assert (spool.entries, spool.waiting("prices"), spool.head("feed", 9)[1]) == (1, 0, [event(1).fields])


def test_stored_entries_are_found_by_the_next_process(open_spool: Opener) -> None:
    spool = open_spool()
    spool.put([price(n) for n in range(5)])
    drop(spool, 2)
    spool.close()
    spool = open_spool()
    assert (spool.entries, prices(spool)) == (3, [price(2), price(3), price(4)])


def test_file_is_created_on_first_use_and_removed_when_empty(open_spool: Opener, tmp_path: Path) -> None:
    spool = open_spool()
    assert not spool.path.exists()
    spool.put([price(1)])
    assert spool.path.exists()
    drop(spool, 1)
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_emptied_spool_frees_its_disk_space_while_in_use(open_spool: Opener, tmp_path: Path) -> None:
    """Otherwise `status` and `doctor` would report waiting prices, and the file would occupy the disk."""
    spool = open_spool()
    for _ in range(2):
        spool.put([price(n) for n in range(1000)])
        assert folder_size(tmp_path) > 1000
        while spool.entries:
            drop(spool, 300)
        assert folder_size(tmp_path) == 0


def test_file_with_entries_stays_and_its_lock_is_released(open_spool: Opener) -> None:
    spool = open_spool()
    spool.put([price(1)])
    spool.close()
    assert spool.path.exists()
    assert open_spool().entries == 1


def test_spool_has_one_owner(open_spool: Opener) -> None:
    open_spool().put([price(1)])
    with pytest.raises(Timeout):
        open_spool()


# --- Entries that wait for a confirmation only


def test_appended_entries_hold_back_nothing(open_spool: Opener) -> None:
    spool = open_spool()
    spool.put([price(1), event(1)], appended=True)
    assert (spool.entries, spool.not_appended("prices"), spool.head("prices", 9)[:2]) == (2, 0, (0, []))
    assert spool.appended("prices")[1] == price(1).fields
    spool.put([price(2)])
    spool.put([price(3)], appended=True)  # after one that is not: it has to wait for it
    assert (spool.not_appended("prices"), prices(spool)) == (2, [price(2), price(3)])
    assert not spool.all_appended


def test_appended_entries_are_dropped_or_forgotten(open_spool: Opener) -> None:
    spool = open_spool()
    spool.put([price(1)])
    spool.put([price(2), price(3)])
    first = spool.head("prices", 2)
    spool.set_appended("prices", first)
    assert (spool.appended("prices"), prices(spool)) == ((first.mark, price(2).fields), [price(3)])
    second = spool.head("prices", 2)
    assert (second.after, second.previous, second.entries) == (first.mark, price(2).fields, [price(3).fields])
    spool.forget_appended("prices")
    assert (spool.not_appended("prices"), len(prices(spool))) == (3, 3)
    spool.set_appended("prices", second)  # was read before
    assert spool.not_appended("prices") == 3
    spool.set_appended("prices", first)
    spool.drop("prices", first.mark)
    assert (spool.entries, spool.not_appended("prices"), spool.appended("prices")) == (1, 1, (0, None))


def test_next_process_knows_nothing_as_appended(open_spool: Opener) -> None:
    spool = open_spool()
    spool.put([price(1)], appended=True)
    spool.close()
    assert open_spool().not_appended("prices") == 1


def test_discarded_feed_events_leave_no_number_missing_between_others(open_spool: Opener) -> None:
    """An event can be numbered after another one and have an earlier time: an instrument has that of its price."""
    spool = open_spool()
    events = [{"session": "1", "number": str(n), "at": str(at)} for n, at in enumerate((1000, 2500, 1500, 2600), 1)]
    other = {"session": "2", "number": "1", "at": "1500"}
    spool.put([Outgoing("feed", event) for event in (*events, other)])
    assert spool.discard_since(2000) == 0
    assert list(spool.head("feed", 10).entries) == [events[0], other]


def test_entries_since_a_time_are_discarded(open_spool: Opener) -> None:
    spool = open_spool(max_bytes=200)
    for received in (1000, 2000, 3000):
        spool.put(
            [Outgoing("prices", {"received": str(received)}), Outgoing("feed", {"session": "1", "at": str(received)})]
        )
    assert spool.discard_since(2000) == 2
    assert (spool.waiting("prices"), spool.waiting("feed")) == (1, 1)
    assert spool.head("prices", 9)[1] == [{"received": "1000"}]
    spool.put([Outgoing("prices", {"received": "9" * 100})])  # there is room again


# --- Maximum size

SIZE = len(json.dumps(price(1).fields))  # bytes of a price on disk


def test_size_limit_applies_to_prices_and_refused_batches_leave_nothing(open_spool: Opener) -> None:
    spool = open_spool(max_bytes=3 * SIZE)
    spool.put([price(1), price(2)])
    with pytest.raises(SpoolFullError, match=r"is full at .* \(--spool-max\)") as caught:
        spool.put([event(1), price(3), price(4)])
    assert isinstance(caught.value, OutageError)
    assert prices(spool) == [price(1), price(2)]
    spool.put([price(3)])
    with pytest.raises(SpoolFullError):
        spool.put([price(4)])
    spool.put([event(1)] * 50)  # feed events are always accepted
    assert spool.entries == 53


def test_dropped_entries_free_space_immediately_and_after_a_restart(open_spool: Opener) -> None:
    spool = open_spool(max_bytes=3 * SIZE)
    spool.put([price(1), price(2), price(3)])
    spool.drop("prices", 1)
    spool.put([price(4)])
    with pytest.raises(SpoolFullError):
        spool.put([price(5)])
    spool.close()
    spool = open_spool(max_bytes=3 * SIZE)
    with pytest.raises(SpoolFullError):
        spool.put([price(5)])
    spool.drop("prices", 2)
    spool.put([price(5)])
    assert prices(spool) == [price(3), price(4), price(5)]


def test_failing_disk_is_an_outage_and_recovers(open_spool: Opener) -> None:
    spool = open_spool()
    spool.path.write_bytes(b"no database" * 100)
    for _ in range(2):
        with pytest.raises(SpoolFullError, match="cannot be written"):
            spool.put([price(1)])
    spool.path.unlink()
    spool.put([price(1)])
    assert spool.entries == 1


# --- Orphans


class NoRoomToDelete:
    """A connection on a full disk: rows can be read, but not deleted."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def execute(self, sql: str, *arguments: Any) -> Any:
        if sql.startswith("DELETE"):
            raise sqlite3.OperationalError("database or disk is full")
        return self._db.execute(sql, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def __enter__(self) -> Any:
        return self._db.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self._db.__exit__(*error)


def test_spool_empties_on_a_disk_too_full_to_delete(open_spool: Opener) -> None:
    """Otherwise the oldest entries would be appended again and again, and block all others."""
    spool = open_spool()
    spool.put([price(n) for n in range(5)])
    spool._db = NoRoomToDelete(spool._connection())  # type: ignore[assignment]
    seen: list[Outgoing] = []
    while spool.entries:
        seen += prices(spool, 2)
        drop(spool, 2)
    assert seen == [price(n) for n in range(5)]
    assert not spool.path.exists()  # removing the file needs no space
    spool.put([price(9)])
    assert prices(spool) == [price(9)]


def test_spool_empties_on_a_disk_turned_read_only(open_spool: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux remounts a disk read-only after an error."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    spool = open_spool()
    spool.put([price(n) for n in range(5)])
    spool._db = NoRoomToDelete(spool._connection())  # type: ignore[assignment]
    with monkeypatch.context() as disk:
        disk.setattr(Path, "unlink", refuse)
        drop(spool, 9)
        assert spool.entries == 0  # so new events go to Redis directly
        spool.close()
    assert spool.path.exists()


def test_orphan_of_another_user_is_reported_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.spool").touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert list(adopt_orphans(tmp_path)) == []
    assert "spool not adopted" in caplog.text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("unix:///r.sock?db=0", "prices"), ("unix:///r.sock?db=1", "prices")),
        (("redis://h/0", "价格"), ("redis://h/0", "行情")),
        (("redis://h/0", "a-b"), ("redis://h/0-a", "b")),
    ],
)
def test_destinations_never_share_a_spool_folder(one: tuple[str, str], other: tuple[str, str], tmp_path: Path) -> None:
    first, second = (spool_folder(tmp_path, Secret(url), stream) for url, stream in (one, other))
    assert first != second


def test_orphans_are_adopted_oldest_first_and_live_spools_are_skipped(open_spool: Opener, tmp_path: Path) -> None:
    for name in ("2.spool", "3.spool", "1.spool", "4.spool"):
        spool = open_spool(name)
        spool.put([Outgoing("prices", {"from": name})])
        if name != "3.spool":  # its producer is alive
            spool.close()
    adopted = []
    for orphan in adopt_orphans(tmp_path):
        assert prices(orphan) == [Outgoing("prices", {"from": orphan.path.name})]
        adopted.append(orphan.path.name)
        with pytest.raises(Timeout):
            open_spool(orphan.path.name)  # locked until it is closed
        orphan.close()
    assert adopted == ["1.spool", "2.spool", "4.spool"]


def test_broken_orphan_is_reported_kept_and_does_not_block_others(
    open_spool: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.spool").write_bytes(b"no database" * 100)
    spool = open_spool("2.spool")
    spool.put([price(1)])
    spool.close()
    for _ in range(2):  # the lock was released
        caplog.clear()
        for orphan in adopt_orphans(tmp_path):
            assert orphan.path.name == "2.spool"
            orphan.close()
        assert [(record.levelno, "1.spool" in record.message) for record in caplog.records] == [(logging.ERROR, True)]
    assert (tmp_path / "1.spool").exists()


# --- Folder


def test_folder_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "spool"
    make_folder(folder)
    make_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == []


def test_impossible_folder_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot be written .*--spool-dir"):
        make_folder(tmp_path / "file" / "spool")


def test_destinations_have_own_folders_without_secrets_in_the_name(tmp_path: Path) -> None:
    urls = ["redis://:p4ss@one:6379/0", "redis://:p4ss@two:6379/0", "redis://:p4ss@one:6379/1", "unix:///one/socket"]
    folders = {spool_folder(tmp_path, Secret(url), stream) for url in urls for stream in ("prices", "demo")}
    assert len(folders) == 8
    assert all(folder.parent == tmp_path and "p4ss" not in folder.name for folder in folders)
    assert (
        spool_folder(tmp_path, Secret("redis://:other@one:6379/0"), "prices") in folders
    )  # the password is not part of the destination
