"""Folders of the embedded servers."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ConfigurationError

#: Longest path of a folder that leaves room for a socket's name within the 104 bytes of macOS.
MAX_SOCKET_FOLDER = 79


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the system into a ConfigurationError."""
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(f"cannot run the embedded servers in {folder}: {error}") from error


def make_reachable(folder: Path) -> None:
    """Make `folder` and its missing parents: private, but as root open for the servers' account to pass through."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(exist_ok=True)
        missing.chmod(0o755 if os.geteuid() == 0 else 0o700)


def socket_folder(folder: Path) -> Path:
    """The folder for a server's socket: `folder`, or one in /tmp if its path is too long or needs quoting in a URL."""
    if len(str(folder)) <= MAX_SOCKET_FOLDER and re.fullmatch(r"[\w./-]+", str(folder), re.ASCII):
        return folder
    name = hashlib.sha256(f"{os.geteuid()}:{folder}".encode(errors="surrogateescape")).hexdigest()[:16]
    # Not $TMPDIR, which may be long or private. `Account.own_folder` checks the owner.
    return Path("/tmp") / f"tickpipe-{name}"  # noqa: S108
