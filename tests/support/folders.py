"""Temporary folders for the embedded servers. Paths are short and, for root, open to the user `nobody`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder directly under /tmp, removed at the end. pytest's tmp_path is too long and closed to `nobody`."""
    folder = Path(tempfile.mkdtemp(prefix="tp-", dir="/tmp"))
    try:
        folder.chmod(0o755 if os.geteuid() == 0 else 0o700)
        yield folder
    finally:
        shutil.rmtree(folder)
