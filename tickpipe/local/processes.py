"""Runs the producer and the consumers as real processes, and keeps them running."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from common.errors import ConfigurationError, TickpipeError
from tickpipe.local.servers.children import ending_with_parent

#: Seconds between two starts of a process that keeps dying.
RESTART_AFTER = 2.0
#: Bytes at the end of a log that hold its last line.
LOG_TAIL = 8192
#: The beginning of a log line: time, level, logger (common/log.py).
_LOG_LINE = re.compile(r"\S+Z (?P<level>[A-Z]+) +\S+: ")


class ManagedProcess:
    """One process of the pipeline: its log goes to a file, it ends with us, and it is started again when it dies."""

    def __init__(self, module: str, options: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        """`module` is run as by `python -m`."""
        self.log = log
        self._module = module
        # By this interpreter and its import path: scripts may be in a folder of their own (pip install --user), or not
        # exist. With -P the working folder is not searched for modules.
        self._command = [sys.executable, "-P", "-m", module, *options]
        self._environ = {**environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None
        self._started_at = 0.0

    def start(self) -> None:
        """Start the process, in a session of its own: Ctrl-C is for us, who stop the pipeline in its order."""
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # For this user alone, and no link followed out of the folder: `up` may run as root.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        self._file = self._file or os.fdopen(os.open(self.log, flags, 0o600), "wb")
        self._started_at = time.monotonic()
        self._process = subprocess.Popen(
            self._command,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=self._file,
            start_new_session=True,
            preexec_fn=ending_with_parent(),  # noqa: PLW1509  two system calls, no lock taken
        )

    def keep_running(self) -> None:
        """Start it again where it died. Raises ConfigurationError with its last words where that cannot help."""
        if self._process is None or self._process.poll() is None:
            return
        if self._process.returncode == ConfigurationError.exit_status:
            raise ConfigurationError(self.last_log_line())
        if time.monotonic() - self._started_at >= RESTART_AFTER:
            self.start()

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self._process and self._process.poll() is None:
            self._process.terminate()

    def wait(self, timeout: float) -> None:
        """Wait for its end; after `timeout` seconds it is killed."""
        if self._process:
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._file:
            self._file.close()
            self._file = None

    def last_log_line(self) -> str:
        """The last line of its log."""
        lines = self.log.read_bytes()[-LOG_TAIL:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"{self._module} ended without a message"

    def current_problem(self) -> str:
        """The last line of its log if that is a warning or an error; empty if it has reported progress since."""
        line = self.last_log_line() if self.log.exists() and self.log.stat().st_size else ""
        line = "".join(filter(str.isprintable, line))  # a server's text may hold control characters
        found = _LOG_LINE.match(line)
        if found is None:  # the last line of a process that has ended
            return line
        return f"{self._module}: {line[found.end() :]}" if found["level"] in {"WARNING", "ERROR"} else ""


def stop_all(children: Sequence[ManagedProcess], timeout: float) -> None:
    """Ask all to stop, then wait for each."""
    for child in children:
        child.ask_to_stop()
    for child in children:
        child.wait(timeout)


class NoPriceError(TickpipeError):
    """No price was received."""


class DifferenceError(TickpipeError):
    """What was received and what is stored differ."""
