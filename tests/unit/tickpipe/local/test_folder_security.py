"""Folders and logs of `tickpipe up`: planted links are not followed, not even as root."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from common.errors import ConfigurationError
from tickpipe.local.processes import ManagedProcess
from tickpipe.local.servers.account import Account

UMASK_OPEN = 0o000


def test_symlinked_log_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "producer.log").symlink_to(victim)
    child = ManagedProcess("json.tool", ["--help"], {}, tmp_path / "producer.log")
    with pytest.raises(OSError, match="symbolic links"):
        child.start()
    assert victim.read_text() == "precious"


def test_logs_are_private_regardless_of_umask(tmp_path: Path) -> None:
    before = os.umask(UMASK_OPEN)
    try:
        child = ManagedProcess("json.tool", ["--help"], {}, tmp_path / "logs" / "producer.log")
        child.start()
        child.wait(30)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (child.log.parent, child.log)] == [0o700, 0o600]


def test_symlinked_server_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir(mode=0o755)
    (tmp_path / "folder").symlink_to(tmp_path / "victim")
    with pytest.raises(ConfigurationError, match="is not a folder of user id"):
        Account().own_folder(tmp_path / "folder")
    assert stat.S_IMODE((tmp_path / "victim").stat().st_mode) == 0o755


def test_server_folder_replaced_by_a_symlink_after_the_check_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /tmp the owner can replace the folder at any time. Root would then change the owner of another file."""
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.mkdir(mode=0o755)
    folder.mkdir(mode=0o755)

    def swap() -> None:
        monkeypatch.undo()
        folder.rename(tmp_path / "moved")
        folder.symlink_to(victim)

    def checked_by_name(path: Path) -> os.stat_result:
        found = os.lstat(path)
        if path == folder:
            swap()
        return found

    def checked_by_descriptor(descriptor: int) -> os.stat_result:
        found = os.stat(descriptor)
        swap()
        return found

    monkeypatch.setattr(Path, "lstat", checked_by_name)
    monkeypatch.setattr(os, "fstat", checked_by_descriptor)
    Account().own_folder(folder)
    assert folder.is_symlink()
    assert stat.S_IMODE(victim.stat().st_mode) == 0o755
