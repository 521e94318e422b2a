"""A client's process from outside: its CPU time as the kernel counted it, its memory as samples."""

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

from tickpipe.local.servers.processes import ending_with_parent

#: Seconds between two samples of the memory.
SAMPLE_EVERY = 0.05
#: Seconds after which a client that should have ended is taken for hung …
HUNG_AFTER = 600.0
#: … and without anything new after which no more is expected.
STILL_AFTER = 10.0


def wait_for(look: Callable[[], int], count: int) -> int:
    """Look until there are `count`, or nothing new comes any more: how many there are."""
    found, until = -1, 0.0
    while True:
        now = look()
        if now > found:
            found, until = now, time.monotonic() + STILL_AFTER
        if found >= count or time.monotonic() > until:
            return found
        time.sleep(0.1)


class Usage(NamedTuple):
    """What a process has used: CPU in seconds (user and system); resident bytes, by seconds since its start."""

    cpu: float
    memory: list[tuple[float, int]]
    output: str

    @property
    def peak(self) -> int:
        """The most resident memory seen, bytes."""
        return max((size for _, size in self.memory), default=0)


class Client:
    """A process that was started, watched until it ends."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], folder: Path) -> None:
        self._command = command
        self._output = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed when it has ended
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
            while (size := watched.memory_info().rss) > 0:  # a zombie has none
                self._memory.append((time.monotonic() - began, size))
                time.sleep(SAMPLE_EVERY)
        except psutil.Error:
            return

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def stop(self) -> Usage:
        """Ask it to end (SIGTERM), and wait."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait(may_be_killed=True)

    def wait(self, *, may_be_killed: bool = False) -> Usage:
        """Wait for its end. Raises RuntimeError with what it said where it failed."""
        limit = threading.Timer(HUNG_AFTER, self._process.kill)
        limit.start()
        _, status, used = os.wait4(self._process.pid, 0)
        limit.cancel()
        self._process.returncode = code = os.waitstatus_to_exitcode(status)
        self._watcher.join()
        said, errors = _read(self._output), _read(self._errors)
        if code != 0 and not (may_be_killed and code == -signal.SIGTERM):
            raise RuntimeError(f"{' '.join(self._command)} ended with status {code}:\n{errors[-2000:]}")
        return Usage(used.ru_utime + used.ru_stime, self._memory, said + errors)


def _read(file: object) -> str:
    with file as opened:  # type: ignore[attr-defined]
        opened.seek(0)
        return str(opened.read().decode(errors="replace"))


class Blaster:
    """The server that clients of the websocket are measured against, as a process of its own."""

    def __init__(self, frames: Path) -> None:
        """`frames`: a file of websocket frames."""
        command = [sys.executable, "-m", "benchmarks.blaster", str(frames)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self._port = int(self._line())

    def url(self, count: int, pace: float = 0) -> str:
        """What a client connects to for `count` frames, `pace` a second; 0: as fast as it reads."""
        return f"ws://127.0.0.1:{self._port}/{count}/{pace:g}"

    def seconds(self) -> float:
        """From the first frame to the pong behind the last one, of the connection that ends next."""
        said = json.loads(self._line())
        if "error" in said:
            raise RuntimeError(f"the client left before its last frame: {said['error']}")
        return float(said["ended"]) - float(said["began"])

    def stop(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError("the blaster has ended")
        return line
