"""Runs a part of the pipeline as a child process and restarts it when it dies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from common.errors import ConfigurationError
from tickpipe.local.servers.children import ending_with_parent

#: Minimum seconds between two starts of a process.
RESTART_INTERVAL = 2.0
#: Bytes at the end of a log that are searched for its last line.
LOG_TAIL = 8192
#: Start of a log line: time, level, logger (common/log.py).
_LOG_LINE = re.compile(r"\S+Z (?P<level>[A-Z]+) +\S+: ")


class ManagedProcess:
    """A child process that logs to a file and ends with us."""

    def __init__(self, module: str, options: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        """The process runs `python -m MODULE OPTIONS`."""
        self.log = log
        self._module = module
        # The installed scripts may be in another folder (pip install --user) or missing, so use this interpreter and
        # its import path. -P excludes the working folder.
        self._command = [sys.executable, "-P", "-m", module, *options]
        self._environ = {**environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None
        self._started_at = 0.0

    def start(self) -> None:
        """Start the process in a new session, which Ctrl-C does not reach: we stop the processes in order."""
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Private, and without following a link: `up` may run as root.
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
            preexec_fn=ending_with_parent(),  # noqa: PLW1509  two system calls, no lock
        )

    def keep_running(self) -> None:
        """Restart the process if it has died. Raises ConfigurationError with its last log line if that cannot help."""
        if self._process is None or self._process.poll() is None:
            return
        if self._process.returncode == ConfigurationError.exit_status:
            raise ConfigurationError(self.last_log_line())
        if time.monotonic() - self._started_at >= RESTART_INTERVAL:
            self.start()

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self._process and self._process.poll() is None:
            self._process.terminate()

    def wait(self, timeout: float) -> None:
        """Wait for the end of the process. Kill it after `timeout` seconds."""
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
        """The last line of the log."""
        lines = self.log.read_bytes()[-LOG_TAIL:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"{self._module} ended without a message"

    def current_error(self) -> str:
        """The last line of the log if it is a warning or an error, else an empty string."""
        line = self.last_log_line() if self.log.exists() and self.log.stat().st_size else ""
        line = "".join(filter(str.isprintable, line))  # messages of a server may contain control characters
        found = _LOG_LINE.match(line)
        if found is None:  # the last line of a process that has ended
            return line
        return f"{self._module}: {line[found.end() :]}" if found["level"] in {"WARNING", "ERROR"} else ""


def stop_all(processes: Sequence[ManagedProcess], timeout: float) -> None:
    """Ask all processes to stop, then wait for each. Kill those that take longer than `timeout` seconds."""
    for process in processes:
        process.ask_to_stop()
    for process in processes:
        process.wait(timeout)
