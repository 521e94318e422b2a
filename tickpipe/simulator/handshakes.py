"""Connections that have not sent their request yet."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

#: Limit of connections in the handshake.
MAX_HANDSHAKES = 100


class Handshakes:
    """Creates the server's connections and limits those in the handshake. For the event loop's thread only."""

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[ServerConnection] = weakref.WeakSet()
        self._pending: list[ServerConnection] = []  # oldest first

    def accept(self, *args: Any, **kwargs: Any) -> ServerConnection:
        """Create a connection, as `websockets.serve` expects of `create_connection`."""
        socket = ServerConnection(*args, **kwargs)
        self._sockets.add(socket)
        self._pending.append(socket)
        asyncio.get_running_loop().call_soon(self._limit)
        return socket

    def abort_all(self) -> None:
        """Abort every connection, also those that have completed the handshake."""
        for socket in tuple(self._sockets):
            socket.transport.abort()

    def _limit(self) -> None:
        """Above the limit, close the oldest connections that have not sent their request.

        A connection that was just accepted has no transport: the next call closes it.
        """
        self._pending = [each for each in self._pending if each.state is State.CONNECTING]
        excess = max(0, len(self._pending) - MAX_HANDSHAKES)
        for socket in [each for each in self._pending if hasattr(each, "transport")][:excess]:
            self._pending.remove(socket)
            socket.transport.abort()
