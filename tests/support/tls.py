"""TLS forwarders for servers without TLS: the embedded servers and the simulator."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from contextlib import closing, suppress
from types import TracebackType
from typing import Self

from trustme import CA

#: The first bytes of a PostgreSQL client that wants TLS: length 8 and the SSLRequest code.
_SSL_REQUEST = bytes.fromhex("00000008 04d2162f")
#: Timeout of a TLS handshake in seconds.
_HANDSHAKE = 10.0


def certificate(ca: CA, host: str = "localhost", *, clients: CA | None = None) -> ssl.SSLContext:
    """The certificate of a server: signed by `ca` for `host`. `clients`: the CA of required client certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(host).configure_cert(context)
    if clients:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Forwarder:
    """A local port, with or without TLS, that forwards to a server."""

    def __init__(self, target: str | tuple[str, int], shown: ssl.SSLContext | None, *, postgres: bool = False) -> None:
        """`target`: a socket's path, or host and port. `shown`: None is a server without TLS."""
        self.shown = shown
        self.target = target  # may be changed; open connections are kept
        self._postgres = postgres
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # close() would not wake the thread in accept()
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Close every connection."""
        for client in list(self._open):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listener.accept()
                self._open.add(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Serve one connection. A failed handshake closes it, as in a real server."""
        plain = client
        with suppress(OSError):
            if self.shown:
                client = self._ended(client, self.shown)
            with closing(self._connected()) as server:
                _pump(client, server)
        self._open.discard(plain)
        self._open.discard(client)
        client.close()
        plain.close()

    def _ended(self, client: socket.socket, shown: ssl.SSLContext) -> ssl.SSLSocket:
        client.settimeout(_HANDSHAKE)
        if self._postgres and client.recv(8, socket.MSG_WAITALL) == _SSL_REQUEST:
            client.sendall(b"S")
        secure = shown.wrap_socket(client, server_side=True)
        secure.settimeout(None)
        self._open.add(secure)  # the plain socket no longer has a file descriptor
        return secure

    def _connected(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX if isinstance(self.target, str) else socket.AF_INET)
        server.connect(self.target)
        return server


def _pump(client: socket.socket, server: socket.socket) -> None:
    """Forward data in both directions until one end closes."""
    other = {client: server, server: client}
    while True:
        waits = (
            isinstance(client, ssl.SSLSocket) and client.pending()
        )  # already decrypted, so select does not report it
        for end in [client] if waits else select.select([client, server], [], [])[0]:
            data = end.recv(65_536)
            if not data:
                return
            other[end].sendall(data)
