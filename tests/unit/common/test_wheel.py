"""The wheel has the files that are not Python, and nothing at its top that another package could have."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from common.database.migrations import SQL_FOLDER

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_the_sql_and_lua_files(names: set[str]) -> None:
    sql = {f"common/database/sql/{path.relative_to(SQL_FOLDER)}" for path in SQL_FOLDER.rglob("*.*")}
    lua = {str(path.relative_to(ROOT)) for path in (ROOT / "common" / "streams").glob("*.lua")}
    assert len(lua) == 3
    assert sql | lua <= names


def test_the_wheel_installs_our_packages_only(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"common", "consumer", "producer", "tickpipe"}
