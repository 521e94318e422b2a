"""A process of a chaos run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.support.processes import handles
from tests.support.waiting import wait_for


class Process:
    """A tickpipe command that can be killed, paused and restarted. All its output is in one file."""

    def __init__(self, command: list[str], environ: dict[str, str], log: Path) -> None:
        self._command = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
        self._environ = environ
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process unless it is running."""
        if self._process is None or self._process.poll() is not None:
            with self._log.open("ab") as file:
                self._process = subprocess.Popen(self._command, env=self._environ, stdout=file, stderr=file)

    def send(self, number: signal.Signals) -> None:
        """Send a signal if the process is running."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)

    def end(self, number: signal.Signals, timeout: float = 30.0) -> int:
        """Send a signal and return the exit status. SIGTERM is sent once the process handles it."""
        self.send(signal.SIGCONT)
        if number is signal.SIGTERM:
            wait_for(lambda: self.status is not None or handles(self.pid, number), message="the process has started")
        self.send(number)
        return self._process.wait(timeout) if self._process else 0

    @property
    def pid(self) -> int:
        """The id of the process that was started last."""
        return self._process.pid if self._process else 0

    @property
    def status(self) -> int | None:
        """The exit status, or None while the process is running."""
        return self._process.poll() if self._process else None
