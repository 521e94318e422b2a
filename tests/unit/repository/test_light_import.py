"""`import tickpipe` is fast, and its names are those of its documentation."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tickpipe

HEAVY = {"adbc_driver_manager", "pandas", "polars", "psycopg2", "pyarrow", "redis", "typer"}


def test_import_loads_no_library() -> None:
    program = "import sys, tickpipe; print(*(name.partition('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_each_public_name_exists() -> None:
    for name in tickpipe.__all__:
        assert getattr(tickpipe, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'connection'"):
        tickpipe.connection  # noqa: B018
