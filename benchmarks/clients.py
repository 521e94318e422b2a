"""Runs a client as a process. The kernel reports its CPU time, and samples record its memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from tickpipe.local.servers.children import ending_with_parent

#: Seconds between two memory samples.
SAMPLE_EVERY = 0.05
#: Seconds after which a client that should have ended is killed.
HUNG_AFTER = 600.0
#: Seconds without a new item after which `wait_for` gives up.
STILL_AFTER = 10.0


def wait_for(look: Callable[[], int], count: int) -> int:
    """Poll until there are `count` items, or no new ones for STILL_AFTER seconds. Returns the number of items."""
    found, until = -1, 0.0
    while True:
        now = look()
        if now > found:
            found, until = now, time.monotonic() + STILL_AFTER
        if found >= count or time.monotonic() > until:
            return found
        time.sleep(0.1)


class Usage(NamedTuple):
    """Resources of a finished process.

    `cpu`: user and system time, seconds. `memory`: (seconds since start, resident bytes). `output`: stdout and stderr.
    """

    cpu: float
    memory: list[tuple[float, int]]
    output: str

    @property
    def peak(self) -> int:
        """Peak resident memory, bytes."""
        return max((size for _, size in self.memory), default=0)


class Client:
    """A started process. Its memory is sampled until it ends."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], folder: Path) -> None:
        self._command = command
        self._output = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by wait()
        self._errors = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._memory: list[tuple[float, int]] = []
        self._process = subprocess.Popen(
            command,
            env=dict(environ),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._errors,
            preexec_fn=ending_with_parent(),  # noqa: PLW1509  as for the servers
        )
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        began = time.monotonic()
        try:
            watched = psutil.Process(self._process.pid)
            while (size := watched.memory_info().rss) > 0:  # 0 for a zombie
                self._memory.append((time.monotonic() - began, size))
                time.sleep(SAMPLE_EVERY)
        except psutil.Error:
            return

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def stop(self) -> Usage:
        """Send SIGTERM and wait for the end."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait(may_be_killed=True)

    def wait(self, *, may_be_killed: bool = False) -> Usage:
        """Wait for the end. Raises RuntimeError with the error output if the process failed."""
        limit = threading.Timer(HUNG_AFTER, self._process.kill)
        limit.start()
        _, status, used = os.wait4(self._process.pid, 0)
        limit.cancel()
        self._process.returncode = code = os.waitstatus_to_exitcode(status)
        self._watcher.join()
        output, errors = _read(self._output), _read(self._errors)
        if code != 0 and not (may_be_killed and code == -signal.SIGTERM):
            raise RuntimeError(f"{' '.join(self._command)} ended with status {code}:\n{errors[-2000:]}")
        return Usage(used.ru_utime + used.ru_stime, self._memory, output + errors)


def _read(file: object) -> str:
    with file as opened:  # type: ignore[attr-defined]
        opened.seek(0)
        return str(opened.read().decode(errors="replace"))


class Blaster:
    """The websocket server that feeds the measured clients, as a separate process."""

    def __init__(self, frames: Path) -> None:
        """`frames`: a file of websocket frames."""
        command = [sys.executable, "-m", "benchmarks.blaster", str(frames)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self._port = int(self._line())

    def url(self, count: int, pace: float = 0) -> str:
        """The URL that sends `count` frames, `pace` per second. Pace 0 sends as fast as the client reads."""
        return f"ws://127.0.0.1:{self._port}/{count}/{pace:g}"

    def seconds(self) -> float:
        """Seconds from the first frame to the pong behind the last one, of the next connection that ends."""
        times = json.loads(self._line())
        if "error" in times:
            raise RuntimeError(f"the client disconnected before the last frame: {times['error']}")
        return float(times["ended"]) - float(times["began"])

    def stop(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError("the websocket server has ended")
        return line
