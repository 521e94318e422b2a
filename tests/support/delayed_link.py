"""A network link to a server that delays replication, and can be cut with all bytes that are on the way.

A `kill -9` on loopback loses nothing: the kernel still delivers what was written. Only a delayed link that ends
together with the server shows what a power cut loses.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.support.ports import free_port


class DelayedLink:
    """A local port that forwards to a server.

    Once a client has sent one of the `markers`, all bytes from the server reach it `delay` seconds later.
    """

    def __init__(self, target: str | tuple[str, int], delay: float, *markers: bytes) -> None:
        """`target`: a socket's path, or host and port. `delay` may be changed."""
        self.delay = delay
        self.port = free_port()
        self._target = target
        self._markers = markers
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cut()

    def connect(self) -> None:
        """Accept connections."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Close every connection, lose what is on the way, and refuse new connections."""
        listener, self._listener = self._listener, None
        if listener:
            with suppress(OSError):  # close() would not wake the thread in accept()
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET)
        self._open |= {client, server}
        delayed = threading.Event()
        arriving: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        with suppress(OSError), client, server:
            server.connect(self._target)
            threading.Thread(target=self._read, args=(server, client, delayed, arriving), daemon=True).start()
            threading.Thread(target=self._deliver, args=(client, arriving), daemon=True).start()
            try:
                while data := client.recv(65_536):
                    if any(marker in data for marker in self._markers):
                        delayed.set()
                    server.sendall(data)
            finally:
                for each in (client, server):  # close() would not end the connection while a thread reads from it
                    with suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
        self._open -= {client, server}

    def _read(
        self,
        server: socket.socket,
        client: socket.socket,
        delayed: threading.Event,
        arriving: queue.SimpleQueue[tuple[float, bytes]],
    ) -> None:
        """Pass on what the server sends, at once or after the delay."""
        with suppress(OSError):
            while data := server.recv(65_536):
                if delayed.is_set():
                    arriving.put((time.monotonic() + self.delay, data))
                else:
                    client.sendall(data)
        arriving.put((time.monotonic() + self.delay, b""))

    def _deliver(self, client: socket.socket, arriving: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        """Send the delayed bytes when they are due. After a cut the socket refuses them."""
        with suppress(OSError):
            while True:
                due, data = arriving.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    break
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
