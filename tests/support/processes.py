"""The real commands as processes with a clean environment. All are ended after the test."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.support.waiting import PATIENCE, wait_for

#: A log line, in contrast to output for the user.
LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")
#: Seconds for `tickpipe up` to stop its servers after a failed test.
GRACE = 15.0


def inherited_environ() -> dict[str, str]:
    """The variables that each command inherits: only PATH. Coverage, for one, would take a third of a second each."""
    return {"PATH": os.environ["PATH"]}


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for this signal: not yet while it imports. True without /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    (caught,) = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")]
    return bool(caught >> number - 1 & 1)


class Running:
    """A started command. All its output goes to one file."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._log = log

    @property
    def status(self) -> int | None:
        """The exit status: None while running, negative after a signal."""
        return self._process.poll()

    def said(self) -> str:
        """The output so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def last_log_line(self) -> list[str]:
        """The output lines that are not log lines."""
        return [line for line in self.said().splitlines() if not LOG_LINE.match(line)]

    def json(self) -> Any:
        """The JSON in the output, after any log lines."""
        lines = self.said().splitlines()
        first = next(number for number, line in enumerate(lines) if line in {"[", "{", "[]", "{}"})
        return json.loads("\n".join(lines[first:]))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the process (SIGKILL) and wait for its end."""
        self._process.kill()
        self._process.wait()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return the exit status. Fails after `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} still runs after {timeout:g} s")

    def stop(self, timeout: float = PATIENCE) -> int:
        """Send SIGTERM, once the process handles it, and return the exit status."""
        wait_for(lambda: self.status is not None or handles(self.pid, signal.SIGTERM), timeout, f"{self.name} is ready")
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait_until_said(self, words: str, timeout: float = PATIENCE) -> None:
        """Wait until the output contains this text."""
        wait_for(lambda: words in self.said() or self.status is not None, timeout, f"{self.name} said {words!r}")
        if words not in self.said():
            pytest.fail(f"{self.name} ended with status {self.status} and never said {words!r}")


class Processes:
    """Starts commands. At the end it kills them by pid and prints their output, which pytest shows on failure."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        """`folder` is their working folder and HOME. They inherit only `inherited_environ`."""
        self._folder = folder
        self._environ = {**inherited_environ(), "HOME": str(folder), "LC_ALL": "C.UTF-8", **environ}
        self._started: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._started:
            if process.status is None and process.name.endswith("tickpipe"):  # `up` has servers to stop
                process.signal(signal.SIGTERM)
        until = time.monotonic() + GRACE
        for process in self._started:
            while process.name.endswith("tickpipe") and process.status is None and time.monotonic() < until:
                time.sleep(0.02)
            process.kill()
            print(f"--- {process.name}, pid {process.pid}, status {process.status}")  # noqa: T201
            print(process.said())  # noqa: T201

    def start(self, *command: str | Path, **environ: str) -> Running:
        """Start a program by path, or a command such as `producer`, with more variables."""
        name = f"{len(self._started) + 1}-{Path(command[0]).name}"
        log = self._folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [Path(sys.executable).parent / command[0], *command[1:]],
                env={**self._environ, **environ},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        running = Running(name, process, log)
        self._started.append(running)
        return running
