"""The processes of `tickpipe up`: a producer, consumers and the dashboard."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from common.errors import ConfigurationError, TickpipeError
from tickpipe import dashboard
from tickpipe.local.config import UpConfig
from tickpipe.local.processes import ManagedProcess, stop_all
from tickpipe.local.run_mode import RunMode
from tickpipe.local.servers.embedded import Servers

#: Seconds until a process that does not stop is killed.
STOP_TIMEOUT = 15.0


class Pipeline:
    """Starts the processes, restarts those that die, and stops them. `environ` is their environment."""

    def __init__(
        self, config: UpConfig, mode: RunMode, servers: Servers, environ: Mapping[str, str], console: Console
    ) -> None:
        self.logs = mode.data_dir / "logs"
        self._servers = servers
        options = ["--symbols", ",".join(config.symbols), "--spool-dir", str(mode.data_dir / "spool")]
        self._producer = ManagedProcess("producer", options, environ, self.logs / "producer.log")
        self._consumers = [
            ManagedProcess("consumer", [], environ, self.logs / f"consumer-{number}.log")
            for number in range(1, config.consumers + 1)
        ]
        page = _dashboard(environ, self.logs, console, simulated=mode.simulated) if config.dashboard else None
        self._dashboard = [page] if page else []
        self._essential = [self._producer, *self._consumers]

    def start(self) -> None:
        """Start all processes."""
        for process in (*self._essential, *self._dashboard):
            process.start()

    def keep_running(self, stop: threading.Event) -> None:
        """Restart servers and processes that have died. Raises ConfigurationError if a restart cannot help."""
        with suppress(TickpipeError):  # the view shows the outage, and the next call tries again
            self._servers.keep_running(stop)
        for process in self._essential:
            process.keep_running()
        for process in self._dashboard:
            with suppress(ConfigurationError):  # the dashboard is not needed to store prices
                process.keep_running()

    def producer_error(self) -> str:
        """The producer's current warning or error, or an empty string."""
        return self._producer.current_error()

    def stop_producer(self) -> None:
        """Stop the producer for good."""
        self._essential.remove(self._producer)
        stop_all([self._producer], STOP_TIMEOUT)

    def stop(self) -> None:
        """Stop all processes."""
        stop_all([self._producer, *self._consumers, *self._dashboard], STOP_TIMEOUT)


def _dashboard(environ: Mapping[str, str], logs: Path, console: Console, *, simulated: bool) -> ManagedProcess | None:
    """The dashboard as a process, after its address is printed; None if the extra is not installed."""
    if not dashboard.installed():
        console.print("no dashboard: pip install 'tickpipe[dashboard]'", markup=False)
        return None
    port = dashboard.free_port()
    console.print(f"dashboard: http://{dashboard.HOST}:{port}", soft_wrap=True)
    options = ["dashboard", "--host", dashboard.HOST, "--port", str(port)]
    return ManagedProcess(
        "tickpipe", [*options, "--simulated"] if simulated else options, environ, logs / "dashboard.log"
    )
