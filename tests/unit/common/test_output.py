"""Commands with a limited shell, locale or folder: output or one error line, the right status, no traceback."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from common.errors import ConfigurationError
from common.settings import Secret, absolute_folder
from producer.spool_folder import spool_folder
from tickpipe.local.addresses import default_data_dir

BIN = Path(sys.executable).parent
#: Timeout of a command in seconds, on a busy machine.
PATIENCE = 500
pytestmark = pytest.mark.timeout(600)


class Ended(NamedTuple):
    status: int
    out: str
    err: str


Shell = Callable[..., list[Ended]]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Runs shell lines in parallel, in an environment without servers."""

    def run(*lines: str, folder: Path = tmp_path, **environ: str) -> list[Ended]:
        own = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path), "COLUMNS": "200", **environ}
        own |= {"REDIS_URL": "redis://127.0.0.1:1", "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
        started = [
            subprocess.Popen(
                ["bash", "-c", f"cd {shlex.quote(str(folder))} || exit 99; {line}"],
                env={name: value for name, value in own.items() if value != "-"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for line in lines
        ]
        ended = []
        for process in started:
            out, err = process.communicate(timeout=PATIENCE)
            ended.append(Ended(process.returncode, out.decode(errors="replace"), err.decode(errors="replace")))
            assert "Traceback" not in ended[-1].err
            assert "Exception ignored" not in ended[-1].err
        return ended

    return run


COMMANDS = ["producer --help", "consumer --help", "tickpipe status --help"]


@pytest.mark.parametrize(
    "environ",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["latin-1", "ascii", "locale C"],
)
def test_output_fits_any_encoding(shell: Shell, environ: dict[str, str]) -> None:
    *helped, refused = shell(*COMMANDS[:2], "consumer --claim-idle Ü…", **environ)
    for ended in helped:
        assert (ended.status, ended.err) == (0, "")
        assert "Usage:" in ended.out
    assert refused.status == 2
    assert "was given for '--claim-idle'" in refused.err.splitlines()[-1]


def test_unwritable_output_prints_one_line_and_exits_1(shell: Shell) -> None:
    for ended in shell(*(f"{command} > /dev/full" for command in ["tickpipe --help", "tickpipe simulate --port 0"])):
        assert ended.status == 1
        assert ended.err.partition(": ")[2] == "standard output cannot be written: No space left on device\n"


def test_unwritable_stderr_does_not_change_the_exit_status(shell: Shell) -> None:
    ended = shell(
        "producer 2> /dev/full",
        "consumer --nonsense 2> /dev/full",
        "tickpipe status <&- >&- 2>&-",
        "consumer --help 2>&-",
    )
    assert [each.status for each in ended] == [2, 2, 1, 0]


def test_output_to_a_closed_stdout_is_discarded(shell: Shell) -> None:
    assert shell(*(f"{command} >&-" for command in COMMANDS[:2])) == [Ended(0, "", "")] * 2


def test_broken_pipe_ends_the_command_without_output(shell: Shell) -> None:
    """The reader exits before the first byte, without a race."""
    line = (
        "{{ while [ -e waiting-{0} ]; do sleep 0.05; done; {1}; echo $? > status-{0}; }} | "
        "{{ exec <&-; rm waiting-{0}; }}; cat status-{0}"
    )
    lines = [f"touch waiting-{n}; " + line.format(n, command) for n, command in enumerate(COMMANDS)]
    for ended in shell(*lines):
        assert (ended.out, ended.err) == ("141\n", "")


def test_commands_run_in_a_deleted_working_folder(shell: Shell, tmp_path: Path) -> None:
    deleted = "mkdir gone-{0}; cd gone-{0}; rmdir ../gone-{0}; "
    lines = ["tickpipe --help", "consumer --nonsense", "producer", "tickpipe status", "tickpipe servers relative"]
    ended = shell(*(deleted.format(n) + line for n, line in enumerate(lines)))
    assert [each.status for each in ended] == [0, 2, 2, 1, 2]
    (line,) = ended[-1].err.splitlines()
    assert line == (
        "tickpipe: --data-dir has no absolute path: No such file or directory. Set HOME, or give an absolute path"
    )
    assert not list(tmp_path.glob("gone*"))


# --- Without HOME


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No HOME and no passwd entry, as in a container."""

    def no_entry(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("homeless")
def test_user_without_a_data_folder_must_name_one(tmp_path: Path) -> None:
    """Otherwise the data would be in a folder named '~'."""
    calls: dict[str, Callable[[], object]] = {
        "--spool-dir": lambda: spool_folder(None, Secret("redis://host"), "prices"),
        "--data-dir": lambda: default_data_dir("demo"),
        "--other": lambda: absolute_folder(lambda: Path("~/x"), "--other"),
    }
    for option, call in calls.items():
        with pytest.raises(ConfigurationError, match=rf"^{option} has no absolute path: .*home directory.*\. Set HOME"):
            call()
    assert not list(tmp_path.iterdir())
    assert spool_folder(tmp_path, Secret("redis://host"), "prices").parent == tmp_path
