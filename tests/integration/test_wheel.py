"""The wheel, installed into a new virtual environment and used from another folder."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.folders import temporary_folder
from tests.support.processes import inherited_environ

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "producer", "consumer", "tickpipe")


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def wheel(module_folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(module_folder), cwd=ROOT)
    (built,) = module_folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, module_folder: Path) -> Path:
    """The folder of the commands in a new environment. It borrows the dependencies of the running environment."""
    environment = module_folder / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin/python"
    install = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=module_folder)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Python does not process the .pth files in a borrowed folder, so the editable tickpipe is not found there.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that must succeed."""
    environ = inherited_environ() | {"HOME": str(cwd), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_has_the_packages_the_migrations_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    migrations = {f"common/database/{path.relative_to(ROOT)}" for path in (ROOT / "sql").rglob("*") if path.is_file()}
    scripts = {f"common/streams/{path.name}" for path in (ROOT / "common/streams").glob("*.lua")}
    assert "common/database/sql/0001_prices.sql" in migrations
    assert len(scripts) == 7
    assert migrations | scripts <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert [line.split(" = ")[0] for line in entry_points.splitlines() if " = " in line] == [
        "consumer", "producer", "tickpipe"
    ]  # fmt: skip


def test_installed_tickpipe_runs_the_whole_pipeline_from_any_folder(
    programs: Path, tmp_path: Path, folder: Path
) -> None:
    said = run(
        programs / "tickpipe", "up", "--for", "2", "--rate", "200", "--no-dashboard", "--data-dir", str(folder),
        cwd=tmp_path,
    )  # fmt: skip
    received, equal, stored = said.splitlines()[-1].removeprefix("received ").partition(" = stored ")
    assert equal
    assert received == stored != "0"


@pytest.mark.parametrize("command", ["producer", "consumer", "tickpipe"])
def test_installed_commands_have_help(programs: Path, tmp_path: Path, command: str) -> None:
    assert f"Usage: {command}" in run(programs / command, "--help", cwd=tmp_path)


def test_installed_packages_hide_no_others(programs: Path, tmp_path: Path) -> None:
    """jupysql and ipython-sql have a package `sql`, and many projects have `tests` and `docs`."""
    look = (
        "import importlib.util as u; print([name for name in ('sql', 'tests', 'docs', 'tools') if u.find_spec(name)])"
    )
    assert run(programs / "python", "-c", look, cwd=tmp_path) == "[]\n"
    where = run(programs / "python", "-c", "import common.database.migrations as m; print(m.SQL_FOLDER)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(programs.parent)
