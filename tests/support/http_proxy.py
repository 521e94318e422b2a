"""An HTTP proxy that accepts or refuses CONNECT."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class HttpProxy:
    """`requests`: address and credentials of each CONNECT request."""

    port: int
    status: str
    requests: list[tuple[str, str]] = field(default_factory=list)

    def serve(self, client: socket.socket) -> None:
        """Answer one client."""
        with client, suppress(OSError), ExitStack() as stack:
            reader = stack.enter_context(client.makefile("rb"))
            head = [line.decode().strip() for line in iter(reader.readline, b"\r\n") if line]
            address = head[0].split()[1] if head else ""
            login = [line.partition("Basic ")[2] for line in head if line.startswith("Proxy-Authorization")]
            self.requests.append((address, base64.b64decode(login[0]).decode() if login else ""))
            if not self.status.startswith("200"):
                client.sendall(f"HTTP/1.1 {self.status}\r\n\r\n".encode())
                return
            host, _, port = address.rpartition(":")
            server = stack.enter_context(socket.create_connection((host, int(port))))
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=_copy, args=(client, server), daemon=True).start()
            _copy(server, client)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def http_proxy(status: str = "200 OK") -> Iterator[HttpProxy]:
    """A proxy on the loopback interface that answers CONNECT with this status."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = HttpProxy(listener.getsockname()[1], status)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=proxy.serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
