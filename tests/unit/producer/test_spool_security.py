"""Files that another user or a damaged disk left in the spool's folder do no harm."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from common.errors import ConfigurationError, TickpipeError
from common.settings import Secret
from common.streams.stream import Fields
from producer.spool import Outgoing, Spool
from producer.spool_folder import adopt_orphans, make_folder, spool_folder

ENTRY = Outgoing("prices", {"seq": "1"})
CREATE = "CREATE TABLE entries (id INTEGER PRIMARY KEY, stream TEXT, fields TEXT)"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def plant(path: Path, *statements: str) -> None:
    """Create an SQLite file."""
    with closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            db.execute(statement)


def orphans(folder: Path) -> dict[str, list[Fields]]:
    """The entries of all spools that can be adopted and read."""
    found = {}
    for spool in adopt_orphans(folder):
        with closing(spool):
            try:
                found[spool.path.name] = [*spool.head("feed", 9).entries, *spool.head("prices", 9).entries]
            except TickpipeError as error:
                logging.getLogger("test").error("%s", error)
    return found


# --- The folder


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_spool_is_private_regardless_of_umask(tmp_path: Path, mask: int) -> None:
    folder = tmp_path / "a" / "b" / "spool"
    with umask(mask):
        make_folder(folder)
        with closing(Spool(folder / "1.spool", max_bytes=10**6)) as spool:
            spool.put([ENTRY])
            assert {mode & 0o077 for name, mode in modes(folder).items() if not name.endswith(".lock")} == {0}
    assert [stat.S_IMODE(path.stat().st_mode) & 0o022 for path in (folder, *folder.parents[:2])] == [0, 0, 0]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o707])
def test_group_or_world_writable_folder_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigurationError, match="other users can write to it: chmod 700"):
        make_folder(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_folder_owned_by_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12_345, 12_345)
    with pytest.raises(ConfigurationError, match="belongs to user id 12345"):
        make_folder(folder)


def test_symlinked_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "spool").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="is a symbolic link"):
        make_folder(tmp_path / "spool")


def test_startup_follows_no_planted_symlink(tmp_path: Path) -> None:
    folder, victim = tmp_path / "spool", tmp_path / "victim"
    folder.mkdir(mode=0o700)
    (folder / ".writable").symlink_to(victim)
    make_folder(folder)
    assert not victim.exists()
    assert (folder / ".writable").is_symlink()


# --- Files in it


@pytest.mark.parametrize("exists", [True, False])
def test_planted_symlink_is_not_followed(tmp_path: Path, exists: bool) -> None:
    victim = tmp_path / "victim"
    if exists:
        plant(victim, CREATE, "INSERT INTO entries (stream, fields) VALUES ('prices', '{}')")
    before = victim.read_bytes() if exists else None
    (tmp_path / "1.spool").symlink_to(victim)
    with pytest.raises(TickpipeError, match="not a regular file"):
        Spool(tmp_path / "1.spool", max_bytes=10**6)
    assert orphans(tmp_path) == {}
    assert (victim.read_bytes() if victim.exists() else None) == before


@pytest.mark.parametrize("name", ["1.spool", "1.lock"])
def test_planted_fifo_does_not_block(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / name)
    if name == "1.lock":
        plant(tmp_path / "1.spool", CREATE)
    with closing(Spool(tmp_path / "2.spool", max_bytes=10**6)) as spool:
        spool.put([ENTRY])
    assert orphans(tmp_path)["2.spool"] == [ENTRY.fields]
    assert caplog.records or name == "1.lock"


def test_planted_folder_does_not_block(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1.spool").mkdir()
    assert orphans(tmp_path) == {}
    assert "not a regular file" in caplog.text


@pytest.mark.parametrize(
    "schema",
    [
        # A view without an end.
        ["CREATE VIEW entries AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"],
        # A trigger that inserts a deleted row again.
        [CREATE, "INSERT INTO entries VALUES (1, 'prices', '{}')",
         "CREATE TRIGGER again AFTER DELETE ON entries BEGIN INSERT INTO entries VALUES (old.id, 'prices', '{}'); END"],
        # A second table, an index on an expression, other columns.
        [CREATE, "CREATE TABLE more (x)"],
        [CREATE, "CREATE INDEX i ON entries (hex(fields))"],
        ["CREATE TABLE entries (id, stream, fields)"],
        ["CREATE TABLE entries (id INTEGER PRIMARY KEY, stream TEXT, fields TEXT AS ('{}'))"],
    ],
)  # fmt: skip
def test_planted_file_with_a_foreign_schema_is_kept(
    tmp_path: Path, schema: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    plant(tmp_path / "1.spool", *schema)
    assert orphans(tmp_path) == {}
    assert "is not a spool of tickpipe" in caplog.text
    assert (tmp_path / "1.spool").exists()


@pytest.mark.parametrize(
    "row",
    [
        "(1, 'prices', 'no JSON')", "(1, 'prices', x'00ff')", "(1, 'prices', 7)", "(1, 'prices', NULL)",
        "(1, 'prices', '[1]')", """(1, 'prices', '{"seq": 1}')""", """(1, 'prices', '{"seq": {"a": "b"}}')""",
        "(1, 'other', '{}')", "(1, NULL, '{}')", "(-1, 'prices', '{}')", "(1, 'prices', '{}')",
        f"(1, 'prices', '{'[' * 100_000}')",
    ],
)  # fmt: skip
def test_planted_row_fails_only_its_file(tmp_path: Path, row: str, caplog: pytest.LogCaptureFixture) -> None:
    plant(tmp_path / "1.spool", CREATE, f"INSERT INTO entries VALUES {row}")
    with closing(Spool(tmp_path / "2.spool", max_bytes=10**6)) as spool:
        spool.put([ENTRY])
    assert orphans(tmp_path) == {"2.spool": [ENTRY.fields]}
    assert "is damaged" in caplog.text
    assert (tmp_path / "1.spool").exists()


def test_oversized_row_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = json.dumps({"x": "y" * 2**25})
    with closing(sqlite3.connect(tmp_path / "1.spool")) as db, db:
        db.execute(CREATE)
        db.execute("INSERT INTO entries (stream, fields) VALUES ('prices', ?)", (fields,))
    assert orphans(tmp_path) == {}
    assert "1.spool" in caplog.text


# --- Names of streams


@pytest.mark.parametrize("name", ["../../etc", "a/../../b", "a\0b", "a\nb", "é" * 400, "{}", "x" * 5000, "", ".", ".."])
def test_stream_names_cannot_escape_the_spool_folder(tmp_path: Path, name: str) -> None:
    folder = spool_folder(tmp_path, Secret("redis://localhost/0"), name)
    assert folder.parent == tmp_path
    make_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
