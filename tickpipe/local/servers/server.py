"""A server program as a child process. The data folder must have one owner: `embedded_servers` locks it."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from common.errors import ConfigurationError, TickpipeError
from tickpipe.local.servers.account import Account
from tickpipe.local.servers.children import ending_with_parent, send_signal
from tickpipe.local.servers.folders import make_reachable, one_line_errors, socket_folder
from tickpipe.local.servers.stopping import POLL, raise_if_set
from tickpipe.local.servers.wheels import copy_readable, package_folder

#: Seconds until a server must answer. It may have to replay its log after a crash.
START_TIMEOUT = 120.0
#: Seconds until a server that does not stop is killed.
STOP_TIMEOUT = 30.0
#: Seconds in which a failed start is repeated after a crash: children of the dead server may still use the data.
LINGER_TIMEOUT = 5.0


class EmbeddedServer(ABC):
    """A server as a child process that ends with us, even if we are killed."""

    title: str
    package: str  # package with the program
    program: str  # glob pattern in the folder of the package
    data: str  # in `folder`. The command line contains it, which identifies the process
    pid_file: str  # in `folder`
    stop_signal: signal.Signals

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        """`folder` is for this server only. `settings` are settings of the server program, by name."""
        self._account = Account.choose()
        self._wheel = package_folder(self.package)
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: threading.Event | None = None
        self._last_reply = "no reply"
        self.settings = dict(settings or {})
        self.folder = folder.expanduser().resolve()
        self.log = self.folder / "server.log"
        self._data = self.folder / self.data
        self._pid_file = self.folder / self.pid_file
        self._socket_folder = socket_folder(self.folder)

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL for clients. It does not change between runs."""

    @property
    def pid(self) -> int | None:
        """The process id while the server runs, else None."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, stop: threading.Event | None = None) -> None:
        """Start the server unless it runs, and wait until it answers. Call it from the main thread.

        Raises ConfigurationError (folder, platform, version), or TickpipeError with the end of the log. If `stop` is
        set, stops the server and raises StartStoppedError.
        """
        if self.pid is not None:
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "start servers from the main thread: Linux stops a server when the thread that started it ends"
            )
        self._stop = stop
        with one_line_errors(self.folder):
            make_reachable(self.folder.parent)
            self._account.own_folder(self.folder)
            self._account.own_folder(self._socket_folder)
            package = self._runnable_package()
            self._prepare(package)
            linger = LINGER_TIMEOUT if self._end_leftover() else 0.0
            try:
                self._launch_until_it_answers([str(self._program(package)), *self._arguments()], linger)
            except BaseException:
                self.kill()
                raise

    def stop(self) -> None:
        """Stop the server if it runs; kill it after STOP_TIMEOUT."""
        if self._process is not None:
            self._process.send_signal(self.stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
        self.kill()
        if self._socket_folder != self.folder:
            with suppress(OSError):
                self._socket_folder.rmdir()

    def kill(self) -> None:
        """Kill the server and its children with SIGKILL. `start` can be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)  # it must not start children while we list them
            children = psutil.Process(process.pid).children()
            process.kill()
            for child in children:  # not killpg: PostgreSQL's children have their own sessions
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        process.wait()

    @abstractmethod
    def _prepare(self, package: Path) -> None:
        """Create missing data with the programs in `package`."""

    @abstractmethod
    def _arguments(self) -> list[str]: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    def _program(self, package: Path) -> Path:
        for program in package.glob(self.program):
            return program
        raise ConfigurationError(
            f"{package} has no {self.title} for this platform. Install {self.title} and set its URL"
        )

    def _runnable_package(self) -> Path:
        """The folder of the package, or a copy if the account cannot read it (a virtual environment under /root)."""
        if self._account.uid is None or self._account.can(self._program(self._wheel), "--version"):
            return self._wheel
        copy = self.folder / f"{self.package}-{importlib.metadata.version(self.package)}"
        if not copy.exists():
            copy_readable(self._wheel, copy, self._stop)
        if not self._account.can(self._program(copy / self.package), "--version"):
            raise ConfigurationError(
                f"the user `nobody` cannot run {self.title}, neither in {self._wheel} nor in {copy}"
            )
        return copy / self.package

    def _launch_until_it_answers(self, command: list[str], linger: float) -> None:
        began = time.monotonic()
        process = self._launch(command)
        while not self._answers():
            raise_if_set(self._stop)
            waited = time.monotonic() - began
            if process.poll() is not None:
                if waited > linger:
                    raise TickpipeError(f"{self.title} ended with status {process.returncode}:{log_tail(self.log)}")
                process = self._launch(command)
            elif waited > START_TIMEOUT:
                raise TickpipeError(
                    f"{self.title} does not answer after {waited:.0f} s ({self._last_reply}):{log_tail(self.log)}"
                )
            time.sleep(POLL)

    def _open_log(self) -> int:
        # O_NOFOLLOW: as root we write into a folder of another user.
        return os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        log = self._open_log()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=ending_with_parent(self.stop_signal),  # noqa: PLW1509  two system calls, no lock
                **self._account.process_options,
            )
        finally:
            os.close(log)
        return self._process

    def _end_leftover(self) -> bool:
        """Stop the server of a parent that has died. True if the last run did not end cleanly."""
        if not self._pid_file.exists():
            return False
        try:
            pid = abs(int(self._pid_file.read_text().split()[0]))
        except (ValueError, IndexError):  # the disk was full
            pid = 0
        if pid.bit_length() > 31:  # not a process id
            pid = 0
        deadline = time.monotonic() + STOP_TIMEOUT
        if self._is_this_server(pid):
            send_signal(pid, self.stop_signal)
        elif not pid or psutil.pid_exists(pid):  # the id of another program, which PostgreSQL would mistake for itself
            for stale in (self._pid_file, *self._socket_folder.glob(".*.lock")):
                stale.unlink(missing_ok=True)  # the server may remove it as well
        while self._is_this_server(pid):
            if time.monotonic() > deadline:
                send_signal(pid, signal.SIGKILL)
            raise_if_set(self._stop)
            time.sleep(POLL)
        return True

    def _is_this_server(self, pid: int) -> bool:
        try:
            program, *arguments = psutil.Process(pid).cmdline() or [""]
        except psutil.Error:
            return False
        return Path(program).name == Path(self.program).name and str(self._data) in arguments


def log_tail(log: Path) -> str:
    """The last lines of a server's log, each on its own line, and the path of the log."""
    lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "".join(f"\n  {line}" for line in lines[-6:]) + f"\nFull log: {log}"
