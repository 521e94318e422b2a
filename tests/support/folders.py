"""Temporary folders for the embedded servers, with short paths."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder directly under /tmp, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="tp-", dir="/tmp"))
    try:
        folder.chmod(0o755 if os.geteuid() == 0 else 0o700)
        yield folder
    finally:
        shutil.rmtree(folder)
