"""Folders and logs of `tickpipe up`: a planted link does not lead us, possibly root, to another file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from common.errors import ConfigurationError
from tickpipe.embedded import _Account
from tickpipe.pipeline import Child

UMASK_OPEN = 0o000


def test_a_link_in_place_of_a_log_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "producer.log").symlink_to(victim)
    child = Child("json.tool", ["--help"], {}, tmp_path / "producer.log")
    with pytest.raises(OSError, match="symbolic links"):
        child.start()
    assert victim.read_text() == "precious"


def test_logs_are_for_this_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(UMASK_OPEN)
    try:
        child = Child("json.tool", ["--help"], {}, tmp_path / "logs" / "producer.log")
        child.start()
        child.wait(30)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (child.log.parent, child.log)] == [0o700, 0o600]


def test_a_link_in_place_of_a_servers_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir(mode=0o755)
    (tmp_path / "folder").symlink_to(tmp_path / "victim")
    with pytest.raises(ConfigurationError, match="is not a folder of user id"):
        _Account().own_folder(tmp_path / "folder")
    assert stat.S_IMODE((tmp_path / "victim").stat().st_mode) == 0o755


def test_a_link_that_replaces_a_servers_folder_after_the_check_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /tmp the folder's owner can do that at any moment; root would then change the owner of another file."""
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
    _Account().own_folder(folder)
    assert folder.is_symlink()
    assert stat.S_IMODE(victim.stat().st_mode) == 0o755
