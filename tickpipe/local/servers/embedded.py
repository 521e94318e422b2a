"""The embedded servers of one data folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from common.errors import ConfigurationError
from common.settings import absolute_folder
from tickpipe.local.addresses import postgres_folder, valkey_folder
from tickpipe.local.servers.folders import make_reachable, one_line_errors
from tickpipe.local.servers.postgres import PostgresServer
from tickpipe.local.servers.valkey import ValkeyServer


@dataclass(frozen=True)
class Servers:
    """URLs of the embedded servers; None for a server that was not requested.

    `keep_running` restarts servers that have died. Call it from the main thread. It raises TickpipeError if a server
    does not start, and StartStoppedError if the event is set.
    """

    redis_url: str | None
    database_url: str | None
    keep_running: Callable[[threading.Event], None]


@contextmanager
def embedded_servers(
    data_dir: Path, *, redis: bool = True, database: bool = True, stop: threading.Event | None = None
) -> Iterator[Servers]:
    """Run the servers on the data in `data_dir`, which is made if missing. Stops them at the end.

    Call it from the main thread. Raises ConfigurationError if the folder is in use or unusable, TickpipeError if a
    server does not start, StartStoppedError if `stop` is set before both servers answer.
    """
    folder = absolute_folder(lambda: data_dir, "--data-dir")
    with ExitStack() as stack:
        valkey = ValkeyServer(valkey_folder(folder)) if redis else None
        postgres = PostgresServer(postgres_folder(folder)) if database else None
        stack.enter_context(_locked(folder))
        requested = [server for server in (valkey, postgres) if server is not None]

        def keep_running(stop: threading.Event | None) -> None:
            for server in requested:
                server.start(stop)

        for server in requested:
            stack.callback(server.stop)
        keep_running(stop)
        yield Servers(valkey.url if valkey else None, postgres.url if postgres else None, keep_running)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    holder = folder / "pid"  # beside the lock: some versions of filelock empty the locked file
    with one_line_errors(folder):
        make_reachable(folder)
        try:
            lock = filelock.FileLock(folder / "lock").acquire(blocking=False)
        except filelock.Timeout:
            pid = holder.read_text().strip() if holder.exists() else "unknown"
            raise ConfigurationError(f"{folder} is in use by process {pid}: stop it, or use another folder") from None
        holder.write_text(f"{os.getpid()}\n")
    with lock:
        yield
